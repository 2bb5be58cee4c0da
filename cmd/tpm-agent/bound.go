package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/tpm-agent/tpm-agent/keyfile"
	"github.com/tpm-agent/tpm-agent/tpmkey"
)

// bound is one PolicyPCR of a key file, and what the TPM says of it.
type bound struct {
	Selection string  `json:"selection"` // as tpm2-tools have it: sha256:7,11
	PCRs      []int   `json:"pcrs"`
	Digest    string  `json:"digest"`
	Signed    *string `json:"signed_policy,omitempty"` // the name, where it is in one
	Match     *bool   `json:"match"`                   // null: not known
	Problem   string  `json:"problem,omitempty"`

	pcrs *keyfile.PCRs
	hint string
}

// boundTo lists the PCRs that a key is bound to. A policy that cannot be read is
// said to make the key unusable; here it gives an error.
func boundTo(key *keyfile.TPMKey) ([]bound, error) {
	size := len(key.Public.AuthPolicy)
	list, err := boundBy(key.Policy, size, nil)
	for _, signed := range key.AuthPolicy {
		name := plain(signed.Name)
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

// lookAtPCRs asks the TPM. That there is none, or that it does not answer, is
// something to show, not a failure; that the user does not want to wait is.
func lookAtPCRs(ctx context.Context, tpm *tpmkey.TPM, key *keyfile.TPMKey, list []bound) error {
	for i := range list {
		b := &list[i]
		err := tpm.CheckPCRs(ctx, key.Public.NameAlg, b.pcrs)
		if ctx.Err() != nil {
			return errors.Join(orInterrupted(ctx, err), tpm.Close())
		}
		var changed *tpmkey.PCRError
		isChanged := errors.As(err, &changed)
		if match := err == nil; match || isChanged {
			b.Match = &match
		}
		if isChanged && b.Signed != nil {
			changed.Signed, changed.Policy = true, *b.Signed
		}
		if err != nil {
			b.Problem = oneLine(err.Error())
		}
		if isChanged {
			b.hint = pcrHint(changed)
		}
	}
	return tpm.Close()
}

// words says what the key is bound to.
func (b *bound) words() string {
	s := fmt.Sprintf("%s (%s), digest %s", pcrWords(b.PCRs), pcrMeanings(b.PCRs), b.Digest)
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

// state says whether they match.
func (b *bound) state() string {
	switch {
	case b.Match == nil:
		return "could not be looked at: " + b.Problem
	case *b.Match:
		return "they match"
	}
	return "they do not match: " + b.Problem
}
