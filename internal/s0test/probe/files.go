package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// perDir is how many files a directory of smallFiles has.
const perDir = 100

// smallFiles makes, looks at, reads and removes so many files of 4 KiB, and prints what each
// took, in seconds.
func smallFiles(a []string) error {
	n, err := strconv.Atoi(a[1])
	if err != nil {
		return err
	}
	at := func(i int) string {
		return filepath.Join(a[0], "small", strconv.Itoa(i/perDir), strconv.Itoa(i))
	}
	content := make([]byte, 4096)
	took := map[string]float64{}
	for _, phase := range []struct {
		name string
		do   func(path string) error
	}{
		{"create", func(path string) error { return os.WriteFile(path, content, 0o644) }},
		{"stat", func(path string) error { _, err := os.Lstat(path); return err }},
		{"read", func(path string) error { _, err := os.ReadFile(path); return err }},
		{"delete", os.Remove},
	} {
		begin := time.Now()
		for i := range n {
			if phase.name == "create" && i%perDir == 0 {
				if err := os.MkdirAll(filepath.Dir(at(i)), 0o755); err != nil {
					return err
				}
			}
			if err := phase.do(at(i)); err != nil {
				return err
			}
		}
		if phase.name == "delete" {
			err = os.RemoveAll(filepath.Join(a[0], "small"))
		}
		took[phase.name] = time.Since(begin).Seconds()
	}
	return errors.Join(err, json.NewEncoder(os.Stdout).Encode(took))
}

// oneFile writes so many MiB to a file, to the disk, and reads them, and prints what each took.
func oneFile(a []string) error {
	n, err := strconv.Atoi(a[1])
	if err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(a[0], "large"))
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	chunk := make([]byte, 1<<20)
	for i := range chunk {
		chunk[i] = byte(i * 7)
	}
	begin := time.Now()
	for range n {
		if _, err := f.Write(chunk); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	wrote := time.Since(begin)
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	begin = time.Now()
	for range n {
		if _, err := io.ReadFull(f, chunk); err != nil {
			return err
		}
	}
	_, err = fmt.Printf(`{"write":%f,"read":%f}`+"\n", wrote.Seconds(), time.Since(begin).Seconds())
	return err
}
