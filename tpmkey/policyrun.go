package tpmkey

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// pcrTries is how often something is done again because a PCR was extended
// meanwhile. After a machine has started that is rare.
const pcrTries = 5

// byPolicy calls fn with the loaded key and a policy session that has been
// through the key's policy. fn uses it once: the session never outlives one
// signature, for what its policy found out may not be true any more.
func (k *Key) byPolicy(l *link, h tpm2.NamedHandle, value []byte, fn func(tpm2.AuthHandle) ([]byte, error)) (sig []byte, err error) {
	for range pcrTries {
		err = k.withPolicySession(l, func(s *session) error {
			auth, err := k.policy.run(l, s)
			if err != nil {
				return err
			}
			var used []byte
			if auth {
				used = value
			}
			sig, err = fn(tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: s.last(used)})
			return err
		})
		if !isRC(err, tpm2.TPMRCPCRChanged) {
			break
		}
	}
	return sig, err
}

// withPolicySession calls fn with a new policy session, and flushes it unless
// its last use has. What a connection that breaks meanwhile leaves in the TPM
// is found as what was not there before.
func (k *Key) withPolicySession(l *link, fn func(*session) error) error {
	return l.making(firstSession, func() error {
		s, err := k.startPolicySession(l)
		if s == nil {
			return err
		}
		defer clear(s.key)
		if err == nil {
			err = fn(s)
		}
		if !s.ended && l.broken == nil {
			err = errors.Join(err, l.flush(s.handle))
		}
		return err
	})
}

// startPolicySession starts one that is salted to the key's parent where an
// auth value is to be proved in it. For PCRs alone nothing is secret.
func (k *Key) startPolicySession(l *link) (s *session, err error) {
	if !k.policy.usesAuth() {
		return startSession(l, nil, tpm2.TPMSEPolicy, k.policy.hash)
	}
	err = k.tpm.withParent(l, *k.source, func(p *parent) (err error) {
		if err := p.mustBe(*k.source, k.ParentName()); err != nil {
			return fmt.Errorf("salting a policy session to %v: %w", *k.source, err)
		}
		s, err = startSession(l, p, tpm2.TPMSEPolicy, k.policy.hash)
		return err
	})
	return s, err
}

// run takes the session through the policy, and reports whether it wants an
// auth value now.
func (p *policy) run(l *link, s *session) (auth bool, err error) {
	if len(p.signed) > 0 {
		if auth, err = p.runSigned(l, s); err != nil {
			return false, err
		}
	}
	more, err := p.runSteps(l, s, p.steps)
	return auth || more, err
}

// runSigned runs the first of the signed policies that the TPM takes.
func (p *policy) runSigned(l *link, s *session) (auth bool, err error) {
	var refusals []error
	for i, signed := range p.signed {
		if i > 0 {
			if err := l.policyCommand("TPM2_PolicyRestart", tpm2.TPMCCPolicyRestart, s, nil); err != nil {
				return false, err
			}
		}
		if auth, err = p.runSteps(l, s, signed.steps); err == nil {
			err = signed.authorize(l, s)
		}
		if err == nil {
			return auth, nil
		}
		if l.broken != nil || l.alive() != nil {
			return false, err
		}
		var pcrs *PCRError
		if errors.As(err, &pcrs) {
			pcrs.Signed, pcrs.Policy = true, signed.name
		} else {
			err = fmt.Errorf("signed policy %q: %w", signed.name, err)
		}
		refusals = append(refusals, err)
	}
	return false, errors.Join(refusals...)
}

// runSteps runs the commands of a policy in order.
func (p *policy) runSteps(l *link, s *session, steps []step) (auth bool, err error) {
	for _, st := range steps {
		if st.pcrs == nil {
			auth = true
			err = l.policyCommand("TPM2_PolicyAuthValue", tpm2.TPMCCPolicyAuthValue, s, nil)
		} else {
			err = p.runPCR(l, s, st.pcrs)
		}
		if err != nil {
			return false, err
		}
	}
	return auth, nil
}

// runPCR runs TPM2_PolicyPCR (TPM 2.0 Part 3, 23.7), which the TPM refuses where
// the values are not the right ones. To say so for sure they are read.
func (p *policy) runPCR(l *link, s *session, pcrs *keyfile.PCRs) error {
	parameters := binary.BigEndian.AppendUint16(nil, uint16(len(pcrs.Digest)))
	parameters = append(append(parameters, pcrs.Digest...), pcrs.Selection...)
	err := l.policyCommand("TPM2_PolicyPCR", tpm2.TPMCCPolicyPCR, s, parameters)
	if isRC(err, tpm2.TPMRCValue) {
		if found := matchPCRs(l, p.hash, pcrs); found != nil {
			return found
		}
	}
	return err
}

// policyCommand runs a command that changes a policy session: the session's
// handle, then parameters.
func (l *link) policyCommand(name string, code tpm2.TPMCC, s *session, parameters []byte) error {
	if err := l.alive(); err != nil {
		return err
	}
	_, err := l.plain(name, plainCommand(code, append(binary.BigEndian.AppendUint32(nil, uint32(s.handle)), parameters...)))
	return err
}

// authorize has the TPM check the signature of a signed policy, and replaces the
// session's digest by the one that stands for the signer (TPM 2.0 Part 3, 23.16).
func (sp *signedPolicy) authorize(l *link, s *session) error {
	ticket, err := sp.ticket(l)
	if err != nil {
		return err
	}
	var parameters []byte
	for _, octets := range [][]byte{sp.digest, sp.by.Ref, sp.by.Signer.Name()} {
		parameters = binary.BigEndian.AppendUint16(parameters, uint16(len(octets)))
		parameters = append(parameters, octets...)
	}
	return l.policyCommand("TPM2_PolicyAuthorize", tpm2.TPMCCPolicyAuthorize, s, append(parameters, ticket...))
}

// ticket loads the signer's public key, and has the TPM verify the signature with
// it: a TPMT_TK_VERIFIED is the TPM's note to itself that it did.
func (sp *signedPolicy) ticket(l *link) (ticket []byte, err error) {
	name := tpm2.TPM2BName{Buffer: sp.by.Signer.Name()}
	h, err := l.loadExternal(sp.by.SignerArea, name)
	if err != nil {
		return nil, err
	}
	hash := nameHash(sp.by.Signer.NameAlg)
	digest := hash.New()
	digest.Write(sp.digest)
	digest.Write(sp.by.Ref)
	body := binary.BigEndian.AppendUint32(nil, uint32(h))
	body = binary.BigEndian.AppendUint16(body, uint16(hash.Size()))
	body = append(digest.Sum(body), sp.by.Signature...)
	ticket, err = l.plain("TPM2_VerifySignature", plainCommand(tpm2.TPMCCVerifySignature, body))
	return ticket, errors.Join(err, l.release(h, name))
}

// loadExternal runs TPM2_LoadExternal for a public key. In the null hierarchy
// the TPM would give no ticket for it.
func (l *link) loadExternal(area []byte, name tpm2.TPM2BName) (tpm2.TPMHandle, error) {
	body := append([]byte{0, 0}, area...) // no private part
	body = binary.BigEndian.AppendUint32(body, uint32(tpm2.TPMRHOwner))
	l.hold(name)
	rsp, err := l.plain("TPM2_LoadExternal", plainCommand(tpm2.TPMCCLoadExternal, body))
	if err != nil {
		l.unhold(name, err)
		return 0, fmt.Errorf("the policy's signer: %w", err)
	}
	if len(rsp) < 4 {
		return 0, l.damaged("TPM2_LoadExternal")
	}
	return tpm2.TPMHandle(binary.BigEndian.Uint32(rsp)), nil
}

// CheckPCRs compares the PCRs of the TPM with what a PolicyPCR of a key with
// this nameAlg wants. It returns nil when they agree, and a [PCRError] when not.
func (t *TPM) CheckPCRs(ctx context.Context, nameAlg uint16, pcrs *keyfile.PCRs) error {
	hash, ok := policyHash(nameAlg)
	if !ok {
		return &UnsupportedError{What: fmt.Sprintf("policy with the hash %#04x", nameAlg), Why: "it is not supported"}
	}
	return t.withTurn(ctx, func(l *link) error { return matchPCRs(l, hash, pcrs) })
}
