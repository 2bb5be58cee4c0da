package main

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// mustComplete registers values that the shell can offer for a flag, or none. One
// that ends in = or : is the beginning of a value. It fails for a flag that does
// not exist, which is a mistake of ours.
func mustComplete(cmd *cobra.Command, flag string, values ...string) {
	complete := func(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		directive := cobra.ShellCompDirectiveNoFileComp
		for _, value := range values {
			if strings.HasPrefix(value, typed) && strings.ContainsAny(value[len(value)-1:], "=:") {
				directive |= cobra.ShellCompDirectiveNoSpace
			}
		}
		return values, directive
	}
	if err := cmd.RegisterFlagCompletionFunc(flag, complete); err != nil {
		panic(err)
	}
}

// completeDir has the shell offer directories for a flag.
func completeDir(cmd *cobra.Command, flag string) {
	if err := cmd.MarkFlagDirname(flag); err != nil {
		panic(err)
	}
}

// completeOneFile offers files once.
func completeOneFile(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveDefault
}

// completingTime is how long somebody who pressed a key waits for an agent.
const completingTime = time.Second

// completeKeys offers the fingerprints of the agent's keys; files, where what was
// typed is none.
func completeKeys(sys system, socket *string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if !strings.HasPrefix("SHA256:", typed) && !strings.HasPrefix(typed, "SHA256:") {
			return nil, cobra.ShellCompDirectiveDefault
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completingTime)
		defer cancel()
		c, err := dialAgent(ctx, sys, *socket)
		if err != nil {
			return nil, cobra.ShellCompDirectiveDefault
		}
		defer c.Close()
		keys, _ := c.keys(ctx)
		var offers []string
		for _, key := range keys {
			if fingerprint := fingerprintOf(key); !slices.Contains(args, fingerprint) {
				offers = append(offers, fingerprint+"\t"+plain(key.Comment))
			}
		}
		return offers, cobra.ShellCompDirectiveDefault
	}
}

func completeCommands(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	var names []string
	for _, c := range cmd.Root().Commands() {
		if len(args) == 0 && c.IsAvailableCommand() {
			names = append(names, c.Name()+"\t"+c.Short)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
