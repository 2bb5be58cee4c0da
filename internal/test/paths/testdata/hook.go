package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"runtime/coverage"
)

// init lets the program that measures clear and write the coverage counters
// while the agent runs. Only the measured copy of the program contains this
// file.
func init() {
	path := os.Getenv("PATHS_SOCKET")
	if path == "" {
		return
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return // a child process: its parent listens already
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if lines := bufio.NewScanner(conn); lines.Scan() {
				fmt.Fprintln(conn, count(lines.Text()))
			}
			conn.Close()
		}
	}()
}

// count clears the counters, or writes them to a directory if one is named.
func count(dir string) error {
	if dir == "" {
		return coverage.ClearCounters()
	}
	if err := coverage.WriteMetaDir(dir); err != nil {
		return err
	}
	return coverage.WriteCountersDir(dir)
}
