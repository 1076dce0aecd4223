package command

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"
)

// maxSecret bounds what is read for one setting.
const maxSecret = 64 << 10

// secretFlag lets a setting come from a file: others can see a command line.
type secretFlag struct {
	file string
	to   *string
}

func secret(f *pflag.FlagSet, to *string, name, help string) *secretFlag {
	s := &secretFlag{to: to}
	f.StringVar(&s.file, name, "", help)
	return s
}

func (s *secretFlag) read() error {
	if s.file == "" {
		return nil
	}
	info, err := os.Stat(s.file)
	if err != nil {
		return err
	}
	if info.Size() > maxSecret {
		return fmt.Errorf("%s: %d bytes are more than a setting has", filepath.Base(s.file), info.Size())
	}
	b, err := os.ReadFile(s.file)
	if err != nil {
		return err
	}
	if *s.to = strings.TrimSpace(string(b)); *s.to == "" {
		return fmt.Errorf("%s is empty", s.file)
	}
	return nil
}

type secretFlags []*secretFlag

func (all secretFlags) read() error {
	for _, s := range all {
		if err := s.read(); err != nil {
			return err
		}
	}
	return nil
}
