package tpmkey

import (
	"bytes"
	"crypto"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// policy is what a policy session must have been through before it authorizes
// the use of a key (TPM 2.0 Part 1, 19.7): the commands of the key file, taken
// apart and found to give the key's policy digest.
type policy struct {
	hash crypto.Hash
	// signed are the alternatives that come first, where a signer says what
	// may be done with the key: one of them must run.
	signed []signedPolicy
	steps  []step
}

// step is one command: TPM2_PolicyPCR, or without PCRs TPM2_PolicyAuthValue.
type step struct{ pcrs *keyfile.PCRs }

// signedPolicy is a list of commands with the digest that they give, signed.
type signedPolicy struct {
	name   string
	steps  []step
	digest []byte
	by     *keyfile.Authorization
}

// newPolicy takes the policy of a key file apart. What cannot be run, or cannot
// lead to the key's policy digest, is refused with the reason.
func newPolicy(file *keyfile.TPMKey) (*policy, error) {
	refuse := func(why string, args ...any) error {
		return &UnsupportedError{What: "key file", Why: fmt.Sprintf(why, args...)}
	}
	p := &policy{}
	var ok bool
	if p.hash, ok = policyHash(file.Public.NameAlg); !ok {
		return nil, refuse("it is used by policy, with the hash %#04x, which is not supported", file.Public.NameAlg)
	}
	list := file.Policy
	if len(list) == 0 {
		return nil, refuse("it is used by policy only (no userWithAuth), and has none")
	}
	digest := make([]byte, p.hash.Size())
	if list[0].CommandCode == keyfile.PolicyAuthorize {
		by, err := list[0].Authorization()
		if err != nil {
			return nil, err
		}
		if p.signed, err = signedPolicies(file.AuthPolicy, by, p.hash); err != nil {
			return nil, err
		}
		digest = authorizedDigest(p.hash, by)
		list = list[1:]
	}
	var err error
	if p.steps, err = newSteps(list, p.hash); err != nil {
		return nil, err
	}
	if !bytes.Equal(stepsDigest(p.hash, digest, p.steps), file.Public.AuthPolicy) {
		return nil, refuse("the commands of its policy do not give its policy digest")
	}
	return p, nil
}

// policyHash is the hash of policy sessions for objects with this nameAlg.
func policyHash(alg uint16) (crypto.Hash, bool) {
	h := nameHash(alg)
	return h, uint16(hashAlg(h)) == alg
}

// signedPolicies returns those of the key file that can be run. That one of
// them cannot is a reason to refuse the key only where no other can.
func signedPolicies(list []keyfile.AuthPolicy, by *keyfile.Authorization, hash crypto.Hash) ([]signedPolicy, error) {
	var usable []signedPolicy
	var first error
	for _, a := range list {
		s, err := newSignedPolicy(a, by, hash)
		switch {
		case err == nil:
			usable = append(usable, s)
		case first == nil:
			first = fmt.Errorf("signed policy %q: %w", a.Name, err)
		}
	}
	switch {
	case len(usable) > 0:
		return usable, nil
	case first != nil:
		return nil, first
	}
	return nil, &UnsupportedError{What: "key file", Why: "it is used by signed policies (PolicyAuthorize), and has none yet"}
}

// newSignedPolicy takes one apart: its last command is a PolicyAuthorize of the
// signer that the key names.
func newSignedPolicy(a keyfile.AuthPolicy, by *keyfile.Authorization, hash crypto.Hash) (s signedPolicy, err error) {
	refuse := func(why string) error { return &UnsupportedError{What: "signed policy", Why: why} }
	last := len(a.Policy) - 1
	if last < 0 || a.Policy[last].CommandCode != keyfile.PolicyAuthorize {
		return s, refuse("it does not end with its signature (PolicyAuthorize)")
	}
	s.name = a.Name
	if s.by, err = a.Policy[last].Authorization(); err != nil {
		return s, err
	}
	_, known := policyHash(s.by.Signer.NameAlg)
	switch {
	case !known:
		return s, refuse(fmt.Sprintf("its signer has the hash %#04x, which is not supported", s.by.Signer.NameAlg))
	case s.by.Signature == nil:
		return s, refuse("the signature is missing")
	case !bytes.Equal(s.by.Signer.Name(), by.Signer.Name()) || !bytes.Equal(s.by.Ref, by.Ref):
		return s, refuse("another key has signed it than the one that the policy names, or for another use")
	}
	s.steps, err = newSteps(a.Policy[:last], hash)
	s.digest = stepsDigest(hash, make([]byte, hash.Size()), s.steps)
	return s, err
}

// newSteps takes the commands apart that can be run.
func newSteps(list []keyfile.Policy, hash crypto.Hash) ([]step, error) {
	var steps []step
	for _, p := range list {
		switch p.CommandCode {
		case keyfile.PolicyAuthValue:
			steps = append(steps, step{})
		case keyfile.PolicyPCR:
			pcrs, err := p.PCRs(hash.Size())
			if err != nil {
				return nil, err
			}
			steps = append(steps, step{pcrs})
		default:
			return nil, &UnsupportedError{
				What: "key file", Why: "its policy has a " + p.Command() + ", which is not supported there",
				Supported: []string{"PolicyAuthValue", "PolicyPCR", "PolicyAuthorize as the first"},
			}
		}
	}
	return steps, nil
}

// usesAuth reports whether an auth value is proved on some way through p.
func (p *policy) usesAuth() bool {
	isAuth := func(s step) bool { return s.pcrs == nil }
	return slices.ContainsFunc(p.steps, isAuth) ||
		slices.ContainsFunc(p.signed, func(s signedPolicy) bool { return slices.ContainsFunc(s.steps, isAuth) })
}

// stepsDigest is the policy digest after the steps, from a given one on (TPM 2.0
// Part 3, 23.7 and 23.17).
func stepsDigest(hash crypto.Hash, digest []byte, steps []step) []byte {
	for _, s := range steps {
		h := hash.New()
		h.Write(digest)
		if s.pcrs == nil {
			h.Write(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMCCPolicyAuthValue)))
		} else {
			h.Write(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMCCPolicyPCR)))
			h.Write(s.pcrs.Selection)
			h.Write(s.pcrs.Digest)
		}
		digest = h.Sum(nil)
	}
	return digest
}

// authorizedDigest is the policy digest after a TPM2_PolicyAuthorize, whatever
// was before it (TPM 2.0 Part 3, 23.16 and 23.2.3).
func authorizedDigest(hash crypto.Hash, by *keyfile.Authorization) []byte {
	h := hash.New()
	h.Write(make([]byte, hash.Size()))
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(tpm2.TPMCCPolicyAuthorize)))
	h.Write(by.Signer.Name())
	inner := h.Sum(nil)
	h.Reset()
	h.Write(inner)
	h.Write(by.Ref)
	return h.Sum(nil)
}
