// Command bench measures tpm-agent as its users meet it, through the socket of
// a running daemon, against the same work done with bare TPM commands. It
// prints ratios of figures that were taken in turns in one run, so that the
// machine's mood cancels out. Run it by "make bench".
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	program := flag.String("program", "bin/tpm-agent", "the tpm-agent to measure")
	rounds := flag.Int("rounds", 600, "signatures per kind of key, on either side")
	quick := flag.Bool("quick", false, "small numbers, to see that everything runs")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	// A reader who has seen enough ("make bench | head") must not leave the
	// processes behind that were started here.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "tpm-agent-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{ctx: ctx, program: *program, dir: dir, rounds: *rounds, slowRounds: 40, memory: 10000, sizes: []int{1, 1000, 10000}}
	if *quick {
		b.rounds, b.slowRounds, b.memory, b.sizes = 20, 3, 100, []int{1, 100}
	}
	if err := b.writeAskpass(); err != nil {
		return err
	}
	return errors.Join(b.signatures(), b.slowSignatures(), b.pins(), b.throughput(), b.lists(), b.waiting(), b.residentMemory())
}

// bench holds what every measurement needs.
type bench struct {
	ctx        context.Context
	program    string
	dir        string
	rounds     int
	slowRounds int   // signatures per kind of key on the slow chip
	memory     int   // signatures for the memory figures
	sizes      []int // key directories
}

// times are durations of one thing done many times.
type times []time.Duration

func (t times) median() time.Duration {
	s := slices.Sorted(slices.Values(t))
	return s[len(s)/2]
}

func measure(fn func() error) (time.Duration, error) {
	start := time.Now()
	err := fn()
	return time.Since(start), err
}

func ms(d time.Duration) string { return fmt.Sprintf("%.3f", float64(d)/float64(time.Millisecond)) }
