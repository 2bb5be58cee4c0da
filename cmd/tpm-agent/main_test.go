package main

import (
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain makes the program itself a command of the test scripts: it runs in a
// process of its own, as users run it.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"tpm-agent": main})
}

func splitLines(s string) []string { return strings.Split(s, "\n") }
