SELECT 1; -- reserved: replaced by what the name says
