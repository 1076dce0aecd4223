package archive

import (
	"os"
	"syscall"
)

func blocks(st os.FileInfo) int64 { return st.Sys().(*syscall.Stat_t).Blocks }
