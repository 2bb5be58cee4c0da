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

// policy has the commands that a policy session must run before it authorizes the use of a key (TPM
// 2.0 Part 1, 19.7). It is decoded from the key file, and its commands give the key's
// policy digest.
type policy struct {
	hash crypto.Hash
	// signed are the alternatives that come first, if a signer decides what may
	// be done with the key. One of them must run.
	signed []signedPolicy
	steps  []step
}

// step is one command: TPM2_PolicyPCR, or TPM2_PolicyAuthValue if it is nil.
type step *keyfile.PCRs

// signedPolicy is a list of commands whose policy digest is signed.
type signedPolicy struct {
	name   string
	steps  []step
	digest []byte
	by     *keyfile.Authorization
}

// newPolicy decodes the policy of a key file. It refuses, with the reason, a policy
// that cannot be run or does not give the key's policy digest.
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
	if tpm2.TPMCC(list[0].CommandCode) == tpm2.TPMCCPolicyAuthorize {
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

// policyHash returns the hash of policy sessions for objects with this nameAlg, and
// whether it is supported.
func policyHash(alg uint16) (crypto.Hash, bool) {
	h := nameHash(alg)
	return h, uint16(hashAlgs[h]) == alg
}

// signedPolicies returns the signed policies that can be run. If none can, the error
// is that of the first one.
func signedPolicies(list []keyfile.AuthPolicy, by *keyfile.Authorization, hash crypto.Hash) ([]signedPolicy, error) {
	var usable []signedPolicy
	err := error(&UnsupportedError{What: "key file", Why: "it is used by signed policies (PolicyAuthorize), and has none yet"})
	for i, a := range list {
		s, refused := newSignedPolicy(a, by, hash)
		switch {
		case refused == nil:
			usable = append(usable, s)
		case i == 0:
			err = fmt.Errorf("signed policy %q: %w", a.Name, refused)
		}
	}
	if len(usable) > 0 {
		return usable, nil
	}
	return nil, err
}

// newSignedPolicy decodes a signed policy. Its last command must be a PolicyAuthorize
// by the signer that the key names.
func newSignedPolicy(a keyfile.AuthPolicy, by *keyfile.Authorization, hash crypto.Hash) (s signedPolicy, err error) {
	refuse := func(why string) error { return &UnsupportedError{What: "signed policy", Why: why} }
	last := len(a.Policy) - 1
	if last < 0 || tpm2.TPMCC(a.Policy[last].CommandCode) != tpm2.TPMCCPolicyAuthorize {
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
		return s, refuse("it is signed by a different key than the policy names, or for a different use")
	}
	s.steps, err = newSteps(a.Policy[:last], hash)
	s.digest = stepsDigest(hash, make([]byte, hash.Size()), s.steps)
	return s, err
}

// newSteps decodes commands. It refuses those that are not supported.
func newSteps(list []keyfile.Policy, hash crypto.Hash) ([]step, error) {
	var steps []step
	for _, p := range list {
		switch tpm2.TPMCC(p.CommandCode) {
		case tpm2.TPMCCPolicyAuthValue:
			steps = append(steps, nil)
		case tpm2.TPMCCPolicyPCR:
			pcrs, err := p.PCRs(hash.Size())
			if err != nil {
				return nil, err
			}
			steps = append(steps, pcrs)
		default:
			return nil, &UnsupportedError{
				What: "key file", Why: "its policy has a " + p.Command() + ", which is not supported there",
				Supported: []string{"PolicyAuthValue", "PolicyPCR", "PolicyAuthorize as the first"},
			}
		}
	}
	return steps, nil
}

// usesAuth reports whether p, or one of its alternatives, asks for the auth value.
func (p *policy) usesAuth() bool {
	isAuth := func(s step) bool { return s == nil }
	return slices.ContainsFunc(p.steps, isAuth) ||
		slices.ContainsFunc(p.signed, func(s signedPolicy) bool { return slices.ContainsFunc(s.steps, isAuth) })
}

// stepsDigest returns the policy digest after the steps, starting from digest (TPM
// 2.0 Part 3, 23.7 and 23.17).
func stepsDigest(hash crypto.Hash, digest []byte, steps []step) []byte {
	for _, s := range steps {
		if s == nil {
			digest = extend(hash, digest, tpm2.TPMCCPolicyAuthValue)
		} else {
			digest = extend(hash, digest, tpm2.TPMCCPolicyPCR, s.Selection, s.Digest)
		}
	}
	return digest
}

// authorizedDigest returns the policy digest after a TPM2_PolicyAuthorize, which
// replaces the previous digest (TPM 2.0 Part 3, 23.16 and 23.2.3).
func authorizedDigest(hash crypto.Hash, by *keyfile.Authorization) []byte {
	h := hash.New()
	h.Write(extend(hash, make([]byte, hash.Size()), tpm2.TPMCCPolicyAuthorize, by.Signer.Name()))
	h.Write(by.Ref)
	return h.Sum(nil)
}

// extend returns the policy digest after one command.
func extend(hash crypto.Hash, digest []byte, code tpm2.TPMCC, octets ...[]byte) []byte {
	h := hash.New()
	h.Write(digest)
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(code)))
	for _, o := range octets {
		h.Write(o)
	}
	return h.Sum(nil)
}
