package inspect

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/tpm-agent/tpm-agent/internal/term"
	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// lastPCR is the highest PCR of a PC (TCG PC Client Platform TPM Profile, 4.6).
const lastPCR = 23

// bound is one PolicyPCR of a key file, and what the TPM says about it.
type bound struct {
	Selection string  `json:"selection"` // as tpm2-tools write it: sha256:7,11
	PCRs      []int   `json:"pcrs"`
	Digest    string  `json:"digest"`
	Signed    *string `json:"signed_policy,omitempty"` // the name, where it is in one
	Match     *bool   `json:"match"`                   // null: unknown
	Problem   string  `json:"problem,omitempty"`

	pcrs *keyfile.PCRs
	hint string
}

// boundTo lists the PCRs that a key is bound to. It fails for a policy that cannot
// be read.
func boundTo(key *keyfile.TPMKey) ([]bound, error) {
	size := len(key.Public.AuthPolicy)
	list, err := boundBy(key.Policy, size, nil)
	for _, signed := range key.AuthPolicy {
		name := term.Plain(signed.Name)
		more, e := boundBy(signed.Policy, size, &name)
		list, err = append(list, more...), errors.Join(err, e)
	}
	return list, err
}

func boundBy(policy []keyfile.Policy, size int, signed *string) ([]bound, error) {
	var list []bound
	for _, p := range policy {
		if p.CommandCode != keyfile.PolicyPCR {
			continue
		}
		pcrs, err := p.PCRs(size)
		if err != nil {
			return nil, err
		}
		b := bound{Digest: hex.EncodeToString(pcrs.Digest), Signed: signed, pcrs: pcrs}
		var banks []string
		for _, s := range pcrs.Selections {
			if len(s.PCRs) > 0 {
				banks = append(banks, s.Bank()+":"+strings.Trim(strings.ReplaceAll(fmt.Sprint(s.PCRs), " ", ","), "[]"))
				b.PCRs = append(b.PCRs, s.PCRs...)
			}
		}
		slices.Sort(b.PCRs)
		b.PCRs = slices.Compact(b.PCRs)
		b.Selection = strings.Join(banks, "+")
		list = append(list, b)
	}
	return list, nil
}

// compare asks the TPM. If that fails, the failure is shown.
func (b *bound) compare(ctx context.Context, tpm *tpmkey.TPM, key *keyfile.TPMKey) {
	err := tpm.CheckPCRs(ctx, key.Public.NameAlg, b.pcrs)
	var changed *tpmkey.PCRError
	isChanged := errors.As(err, &changed)
	if match := err == nil; match || isChanged {
		b.Match = &match
	}
	if isChanged && b.Signed != nil {
		changed.Signed, changed.Policy = true, *b.Signed
	}
	if err != nil {
		b.Problem = term.OneLine(err.Error())
	}
	if isChanged {
		b.hint = term.PCRHint(changed)
	}
}

// words describes what the key is bound to.
func (b *bound) words() string {
	s := fmt.Sprintf("%s (%s), digest %s", term.PCRs(b.PCRs), term.PCRMeanings(b.PCRs), b.Digest)
	switch {
	case b.Signed == nil:
	case *b.Signed == "":
		s = "by a signed policy: " + s
	default:
		s = "by the signed policy " + *b.Signed + ": " + s
	}
	if banks, ok := strings.CutPrefix(b.Selection, "sha256:"); !ok || strings.Contains(banks, "+") {
		s += ", banks " + b.Selection
	}
	return s
}

// state describes whether the PCRs match.
func (b *bound) state() string {
	switch {
	case b.Match == nil:
		return "could not be looked at: " + b.Problem
	case *b.Match:
		return "they match"
	}
	return "they do not match: " + b.Problem
}

// WarnPCRs warns if a key is bound to PCRs that any program may reset, or in which
// nothing was recorded: the firmware of some machines measures nothing, and
// software TPMs never do. A key bound to nothing else is not bound at all.
func WarnPCRs(w io.Writer, key *keyfile.TPMKey) {
	list, _ := boundTo(key)
	for _, b := range list {
		for _, n := range b.PCRs {
			if n == 16 || n == lastPCR {
				fmt.Fprintf(w, "tpm-agent: warning: PCR %d can be reset by any program; it says nothing about how the machine was started\n", n)
			}
		}
		if blankDigest(b.PCRs) == b.Digest {
			fmt.Fprintf(w, "tpm-agent: warning: nothing was recorded in %s when this machine was started, so any start where that is so is the right one for the key\n", term.PCRs(b.PCRs))
		}
	}
}

// blankDigest returns the digest of PCRs in which nothing was recorded: those of
// late launch have all bits set until there is one, the others none (TCG PC
// Client Platform TPM Profile, 4.6).
func blankDigest(list []int) string {
	var values []byte
	for _, n := range list {
		var value byte
		if n >= 17 && n <= 22 {
			value = 0xFF
		}
		values = append(values, bytes.Repeat([]byte{value}, sha256.Size)...)
	}
	digest := sha256.Sum256(values)
	return hex.EncodeToString(digest[:])
}
