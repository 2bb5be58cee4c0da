package main

import (
	"strings"

	"github.com/tpm-agent/tpm-agent/agent"
)

// refusalHint says what can be done about a refusal, or nothing where the cause
// says it all.
func refusalHint(r agent.Refusal) string {
	key, file := "KEY", "FILE"
	switch {
	case r.Key != "" && plain(r.Key) == r.Key:
		key, file = shQuote(r.Key), shQuote(r.Key)
	case r.Fingerprint != "":
		key = shQuote(plain(r.Fingerprint))
	}
	return strings.NewReplacer("KEY", key, "FILE", file).Replace(causeHint(agent.Cause(r.Cause)))
}

// causeHint is what can be done about a cause. KEY stands for the key, by file or
// fingerprint, FILE for its file.
func causeHint(cause agent.Cause) string {
	for _, hint := range []func(agent.Cause) string{promptHint, constraintHint, requestHint} {
		if text := hint(cause); text != "" {
			return text
		}
	}
	return ""
}

// promptHint is about PINs and asking for them.
func promptHint(cause agent.Cause) string {
	switch cause {
	case agent.CauseCancelled:
		return "try again, and answer the prompt; if it came unasked, look who asked"
	case agent.CauseNoAnswer:
		return "try again, and answer sooner; or give the PIN ahead of use: tpm-agent unlock KEY"
	case agent.CauseNoPrompt:
		return "tpm-agent unlock KEY gives the PIN ahead of use; or install a pinentry, or start the agent with SSH_ASKPASS set, so that it can ask"
	case agent.CausePrompt:
		return "the program that asks has failed; the PIN can be given in another way: tpm-agent unlock KEY"
	case agent.CauseWrongAuth:
		return "tpm-agent unlock KEY asks again, and says how many tries are left"
	case agent.CauseLockout:
		return "wait; keys without a PIN go on working, and the TPM gives one try back after the other. The owner of the TPM can end it at once: tpm2_dictionarylockout --clear-lockout"
	case agent.CauseLocked:
		return "ssh-add -X unlocks the agent"
	case agent.CauseWrongPassword:
		return "ssh-add -X asks again; each wrong password makes it slower. SIGTERM ends an agent whose password nobody knows, and key files stay"
	}
	return ""
}

// constraintHint is about conditions under which keys were added.
func constraintHint(cause agent.Cause) string {
	switch cause {
	case agent.CauseDestination:
		return "the key was added for other hosts (ssh-add -h, tpm-agent add -h): add it again with this one, or for all"
	case agent.CauseBinding:
		return "ssh or a server on the way is no OpenSSH 8.9 or newer, or it lies about the host"
	case agent.CauseConstraint:
		return "add the key without the condition that the agent does not know"
	case agent.CauseTooMany:
		return "ssh-add -D removes all keys; those of the agent's directories come back with SIGHUP"
	case agent.CauseReplaced:
		return "try again"
	case agent.CauseExpired:
		return "have the certificate renewed; put beside the key file it is taken at once"
	case agent.CauseRemoved, agent.CauseUnknownKey:
		return "ssh-add -l lists what the agent has. A key of its directories that was removed comes back with SIGHUP; others are added again (tpm-agent add, ssh-add)"
	case agent.CauseRemote:
		return "ask on the machine where the agent runs"
	case agent.CauseNoSoftware:
		return "tpm-agent import brings the key into the TPM"
	}
	return ""
}

// requestHint is about what was asked for.
func requestHint(cause agent.Cause) string {
	switch cause {
	case agent.CauseAlgorithm:
		return "a newer client asks for rsa-sha2-256 or -512; for one that cannot: tpm-agent serve --allow-sha1"
	case agent.CauseKey:
		return "tpm-agent inspect FILE says whether this TPM can use it"
	case agent.CauseUpstream:
		return "look at the other agent: ssh-add -l with its socket as SSH_AUTH_SOCK"
	case agent.CauseUnsupported:
		return "the client can do without in most cases; tpm-agent serve --upstream SOCKET gives it to another agent"
	case agent.CauseMalformed:
		return "the program that asks is broken, or no SSH agent client"
	}
	return ""
}
