package cli

import (
	"slices"
	"testing"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/internal/term"
)

// TestAdd: a command that is named first is made alone, unless it looks at the others.
func TestAdd(t *testing.T) {
	t.Parallel()
	var made []string
	command := func(name string) Command {
		return Command{Name: name, New: func(*term.System) *cobra.Command {
			made = append(made, name)
			return &cobra.Command{Use: name, Run: func(*cobra.Command, []string) {}}
		}}
	}
	man := command("man")
	man.Root = true
	all := []string{"one", "two", "man"}
	for _, test := range []struct{ args, want []string }{
		{nil, all},
		{[]string{"one"}, []string{"one"}},
		{[]string{"two", "one"}, []string{"two"}},
		{[]string{"-v", "one"}, all},
		{[]string{"help", "one"}, all},
		{[]string{"man", "one"}, all},
		{[]string{"on"}, all},
		{[]string{cobra.ShellCompRequestCmd, "one"}, all},
	} {
		made = nil
		root := &cobra.Command{Use: "root"}
		Add(root, nil, []Command{command("one"), command("two"), man}, test.args)
		if !slices.Equal(made, test.want) || len(root.Commands()) != len(test.want) {
			t.Errorf("%q: %q", test.args, made)
		}
	}
}

// TestOptional: a flag that was given empty differs from one that was not given.
func TestOptional(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		args []string
		want string
	}{{nil, "none"}, {[]string{"-N", ""}, ""}, {[]string{"--pin", "x"}, "x"}, {[]string{"-N", "x", "-N", "y"}, "y"}} {
		var pin *string
		cmd := &cobra.Command{Use: "test", Run: func(*cobra.Command, []string) {}}
		Optional(cmd.Flags(), &pin, "pin", "N", "the `PIN`")
		cmd.SetArgs(test.args)
		if err := cmd.Execute(); err != nil {
			t.Fatal(err)
		}
		got := "none"
		if pin != nil {
			got = *pin
		}
		if got != test.want {
			t.Errorf("%q: %q, want %q", test.args, got, test.want)
		}
	}
}
