// Command paths counts the functions, files and packages that a signature or a
// new key passes through.
//
//	go run ./internal/test/paths [-v] [-check] [-C DIR]
//
// It builds the agent with coverage counters, runs it on a software TPM in a
// temporary home, clears the counters before a request and reads them after it.
// Only functions of this module count, each with its file and package. A
// function literal belongs to the function around it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// scene is one path through the program and its limits.
type scene struct {
	name                       string
	run                        func(*rig, context.Context) (route, error)
	functions, files, packages int
	withoutMain                bool // the path must not enter package main
}

var scenes = []scene{
	{"a warm signature", (*rig).warmSignature, 100, 25, 8, true},
	{"a first signature, PIN from askpass", (*rig).firstSignature, 220, 50, 13, false},
	{"keygen -q -N ''", (*rig).keygen, 190, 40, 9, false},
}

func main() {
	verbose := flag.Bool("v", false, "list the functions of each path, by package and file")
	check := flag.Bool("check", false, "fail if a path is longer than its limit")
	root := flag.String("C", ".", "the module's `directory`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := measure(ctx, *root, *verbose, *check); err != nil {
		fmt.Fprintln(os.Stderr, "paths:", err)
		os.Exit(1)
	}
}

// measure runs the scenes and prints a line for each.
func measure(ctx context.Context, root string, verbose, check bool) (err error) {
	r, err := newRig(ctx, root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close()) }()
	fmt.Printf("%-36s %9s %5s %8s   %s\n", "path", "functions", "files", "packages", "limits")
	long := 0
	for _, s := range scenes {
		p, err := s.run(r, ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		verdict := ""
		if p.exceeds(s) {
			long++
			verdict = "  too long"
		}
		fmt.Printf("%-36s %9d %5d %8d   %d/%d/%d%s\n", s.name, len(p), p.files(), p.packages(), s.functions, s.files, s.packages, verdict)
		if verbose {
			p.print(os.Stdout)
		}
	}
	if check && long > 0 {
		return fmt.Errorf("%d of %d paths are too long", long, len(scenes))
	}
	return nil
}

func (p route) exceeds(s scene) bool {
	return len(p) > s.functions || p.files() > s.files || p.packages() > s.packages || s.withoutMain && p.entersMain()
}
