package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/tpm-agent/tpm-agent/agent"
)

func newLockCmd(g *global) *cobra.Command {
	var socket string
	cmd := &cobra.Command{
		Use:   "lock",
		Short: "Make the agent forget all PINs",
		Long: `Makes the running agent forget all PINs and all consent that it remembers. The
keys stay. To lock the agent itself with a password, use ssh-add -x.`,
		Example:           "  tpm-agent lock",
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return runLock(cmd, g.sys, socket) },
	}
	agentFlag(cmd, &socket)
	return cmd
}

func runLock(cmd *cobra.Command, sys system, socket string) error {
	ctx, done := interrupting(cmd)
	defer done()
	c, err := dialAgent(ctx, sys, socket)
	if err != nil {
		return err
	}
	defer c.Close()
	answer, err := c.askHere(ctx, agent.ForgetRequest())
	if err != nil {
		return err
	}
	n, err := agent.ParseForgetAnswer(answer)
	switch {
	case errors.Is(err, agent.ErrNotOwner):
		return withHint(fmt.Errorf("forgetting PINs: the agent at %s does not know how, or not over this connection", plain(c.path)),
			"is it tpm-agent? (--socket PATH chooses another.) One that is reached through ssh -A does not do this")
	case err != nil:
		return c.failed(ctx, err)
	}
	fmt.Fprintln(sys.stderr, forgotten(n))
	fmt.Fprintln(sys.stderr, "The agent signs as before, and asks again. (ssh-add -x locks it altogether.)")
	return nil
}

func forgotten(pins int) string {
	switch pins {
	case 0:
		return "No PIN was remembered. Consent that was given for a time is forgotten."
	case 1:
		return "1 PIN forgotten, and all consent that was given for a time."
	}
	return fmt.Sprintf("%d PINs forgotten, and all consent that was given for a time.", pins)
}
