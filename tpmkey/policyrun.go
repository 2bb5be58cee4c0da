package tpmkey

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// pcrTries is how often something is tried because a PCR was extended meanwhile. That
// is rare once a machine has started.
const pcrTries = 5

// byPolicy signs with the loaded key h in a policy session. Each signature needs its
// own session: the PCRs may have changed since the last one.
func (s *signing) byPolicy(l *link, h tpm2.NamedHandle) (err error) {
	for range pcrTries {
		err = l.making(firstSession, func() error { return s.inPolicySession(l, h) })
		if !isRC(err, tpm2.TPMRCPCRChanged) {
			break
		}
	}
	return err
}

// inPolicySession starts a policy session, runs the key's policy in it, signs, and
// flushes the session unless its last use did. If the auth value will be proved in
// it, the session is salted to the key's parent. PCRs alone are no secret.
func (s *signing) inPolicySession(l *link, h tpm2.NamedHandle) (err error) {
	k := s.key
	var ses *session
	if k.policy.usesAuth() {
		ses, err = k.tpm.saltedSession(l, *k.source, k.Parent().Name, tpm2.TPMSEPolicy, k.policy.hash)
	} else {
		ses, err = startSession(l, nil, tpm2.TPMSEPolicy, k.policy.hash)
	}
	if ses == nil {
		return err
	}
	var auth bool
	if err == nil {
		auth, err = k.policy.run(l, ses)
	}
	if err == nil {
		var value []byte
		if auth {
			value = s.value
		}
		err = s.sign(l, tpm2.AuthHandle{Handle: h.Handle, Name: h.Name, Auth: ses.use(value, 0)})
	}
	clear(ses.key)
	if !ses.ended && l.broken == nil {
		err = errors.Join(err, l.flush(ses.handle))
	}
	return err
}

// run runs the policy in the session, and reports whether the policy asks for the
// auth value.
func (p *policy) run(l *link, s *session) (auth bool, err error) {
	if len(p.signed) > 0 {
		if auth, err = p.runSigned(l, s); err != nil {
			return false, err
		}
	}
	more, err := p.runSteps(l, s, p.steps)
	return auth || more, err
}

// runSigned runs the first of the signed policies that the TPM accepts.
func (p *policy) runSigned(l *link, s *session) (auth bool, err error) {
	var refusals []error
	for i, signed := range p.signed {
		if i > 0 {
			// go-tpm does not have this command.
			restart := newCommand(tpm2.TPMSTNoSessions, tpm2.TPMCCPolicyRestart, binary.BigEndian.AppendUint32(nil, uint32(s.handle)))
			if _, err := l.plain("TPM2_PolicyRestart", restart); err != nil {
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
		if pcrs, ok := errors.AsType[*PCRError](err); ok {
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
		if err := l.alive(); err != nil {
			return false, err
		}
		if st == nil {
			auth = true
			_, err = execute(l, "TPM2_PolicyAuthValue", tpm2.PolicyAuthValue{PolicySession: s.handle})
		} else {
			err = p.runPCR(l, s, st)
		}
		if err != nil {
			return false, err
		}
	}
	return auth, nil
}

// runPCR runs TPM2_PolicyPCR (TPM 2.0 Part 3, 23.7). If the TPM refuses, runPCR reads
// the PCRs to find out whether their values are the reason.
func (p *policy) runPCR(l *link, s *session, pcrs *keyfile.PCRs) error {
	selection, err := tpm2.Unmarshal[tpm2.TPMLPCRSelection](pcrs.Selection)
	if err != nil {
		return fmt.Errorf("TPM2_PolicyPCR: %w", err)
	}
	_, err = execute(l, "TPM2_PolicyPCR", tpm2.PolicyPCR{
		PolicySession: s.handle, PcrDigest: tpm2.TPM2BDigest{Buffer: pcrs.Digest}, Pcrs: *selection,
	})
	if isRC(err, tpm2.TPMRCValue) {
		if found := matchPCRs(l, p.hash, pcrs); found != nil {
			return found
		}
	}
	return err
}

// authorize lets the TPM check the signature of a signed policy. The TPM then
// replaces the session's digest by one that stands for the signer (TPM 2.0 Part 3,
// 23.16).
func (sp *signedPolicy) authorize(l *link, s *session) error {
	ticket, err := sp.ticket(l)
	if err != nil {
		return err
	}
	_, err = execute(l, "TPM2_PolicyAuthorize", tpm2.PolicyAuthorize{
		PolicySession:  s.handle,
		ApprovedPolicy: tpm2.TPM2BDigest{Buffer: sp.digest},
		PolicyRef:      tpm2.TPM2BDigest{Buffer: sp.by.Ref},
		KeySign:        tpm2.TPM2BName{Buffer: sp.by.Signer.Name()},
		CheckTicket:    *ticket,
	})
	return err
}

// ticket loads the signer's public key and lets the TPM verify the signature with it.
// The ticket proves to TPM2_PolicyAuthorize that it did.
func (sp *signedPolicy) ticket(l *link) (*tpm2.TPMTTKVerified, error) {
	signature, err := tpm2.Unmarshal[tpm2.TPMTSignature](sp.by.Signature)
	if err != nil {
		return nil, fmt.Errorf("the signature of the policy: %w", err)
	}
	name := tpm2.TPM2BName{Buffer: sp.by.Signer.Name()}
	l.held = append(l.held, string(name.Buffer))
	signer, err := execute(l, "TPM2_LoadExternal", tpm2.LoadExternal{
		InPublic:  tpm2.BytesAs2B[tpm2.TPMTPublic](sp.by.SignerArea[2:]),
		Hierarchy: tpm2.TPMRHOwner, // the TPM gives no ticket for a key in the null hierarchy
	})
	if err != nil {
		l.unhold(name, err)
		return nil, fmt.Errorf("the policy's signer: %w", err)
	}
	digest := nameHash(sp.by.Signer.NameAlg).New()
	digest.Write(sp.digest)
	digest.Write(sp.by.Ref)
	rsp, err := execute(l, "TPM2_VerifySignature", tpm2.VerifySignature{
		KeyHandle: signer.ObjectHandle,
		Digest:    tpm2.TPM2BDigest{Buffer: digest.Sum(nil)},
		Signature: *signature,
	})
	if err := errors.Join(err, l.release(signer.ObjectHandle, name)); err != nil {
		return nil, err
	}
	return &rsp.Validation, nil
}

// CheckPCRs compares the PCRs of the TPM with the values that a PolicyPCR requires,
// for a key with this nameAlg. It returns nil if they agree, and a [PCRError] if they
// do not.
func (t *TPM) CheckPCRs(ctx context.Context, nameAlg uint16, pcrs *keyfile.PCRs) error {
	hash, ok := policyHash(nameAlg)
	if !ok {
		return &UnsupportedError{What: fmt.Sprintf("policy with the hash %#04x", nameAlg), Why: "it is not supported"}
	}
	return t.withTurn(ctx, func(l *link) error { return matchPCRs(l, hash, pcrs) })
}
