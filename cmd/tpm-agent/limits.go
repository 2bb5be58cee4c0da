package main

import (
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// mostConns is how many clients are served at a time where descriptors are
	// no matter.
	mostConns = 4096

	// keptFiles are descriptors that clients must leave: for key files and
	// their directories, the TPM, prompts, and what the runtime has open.
	keptFiles = 32
)

// maxConns is how many clients the limit of open files leaves room for, when
// each may have a connection to each upstream agent as well. Go has raised the
// soft limit to the hard one by now.
func maxConns(upstreams int) (int, error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("reading the limit of open files: %w", err)
	}
	files := int(min(limit.Cur, 1<<20))
	return max(1, min(mostConns, (files-min(keptFiles, files/2))/(1+upstreams))), nil
}

// harden keeps PINs out of core files, and other processes of the user out of
// this one's memory. Only the soft limit is set: a COMMAND may raise it again.
func harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keeping others out of the agent's memory: %w", err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return fmt.Errorf("reading the limit for core files: %w", err)
	}
	limit.Cur = 0
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &limit); err != nil {
		return fmt.Errorf("turning off core files: %w", err)
	}
	return nil
}
