package tpmkey

import (
	"context"
	"crypto"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// Algorithm is the type and size of a key to make.
type Algorithm int

// The algorithms that SSH and TPM 2.0 have in common.
const (
	ECDSAP256 Algorithm = iota + 1
	ECDSAP384
	ECDSAP521
	RSA2048
	RSA3072
	RSA4096
)

// Algorithms returns all of them.
func Algorithms() []Algorithm {
	return []Algorithm{ECDSAP256, ECDSAP384, ECDSAP521, RSA2048, RSA3072, RSA4096}
}

// String returns the algorithm as "ECDSA P-256" or "RSA 2048".
func (a Algorithm) String() string {
	if _, ok := a.curve(); ok {
		return fmt.Sprintf("ECDSA P-%d", a.Bits())
	}
	return fmt.Sprintf("RSA %d", a.Bits())
}

// Bits returns the size of the field or of the modulus.
func (a Algorithm) Bits() int {
	switch a {
	case ECDSAP256:
		return 256
	case ECDSAP384:
		return 384
	case ECDSAP521:
		return 521
	case RSA2048:
		return 2048
	case RSA3072:
		return 3072
	case RSA4096:
		return 4096
	default:
		return 0
	}
}

func (a Algorithm) curve() (tpm2.TPMECCCurve, bool) {
	switch a {
	case ECDSAP256:
		return tpm2.TPMECCNistP256, true
	case ECDSAP384:
		return tpm2.TPMECCNistP384, true
	case ECDSAP521:
		return tpm2.TPMECCNistP521, true
	default:
		return 0, false
	}
}

// Template says which key to make.
type Template struct {
	Algorithm Algorithm
	// Auth is the PIN as typed; empty for none. A key with a PIN is
	// protected by the TPM's lockout, one without is exempt from it, so
	// that wrong PINs elsewhere do not stop it.
	Auth []byte
	// Parent is the handle to make the key under: 0 or a hierarchy's
	// primary storage key (keyfile.ParentOwner, …), or a persistent
	// storage key 0x81xxxxxx.
	Parent uint32
	// ParentName is the Name that the storage key must have, nil for any. If
	// it has another one, Create fails with a [ParentChangedError] before
	// anything about the new key has crossed the bus.
	ParentName []byte
	// PCRs, 0 to 23 of the bank SHA-256, bind the key to their values at the
	// moment when it is made: it signs only while they have them.
	PCRs []int
}

// Create makes a key inside the TPM and returns it wrapped by its parent. It
// leaves nothing in the TPM. The PIN crosses the bus encrypted.
//
// Where the owner hierarchy has a password, a key for it is made under the
// storage key at 0x81000001, if there is one, and names that as its parent.
func (t *TPM) Create(ctx context.Context, tm Template) (*keyfile.TPMKey, error) {
	named, err := storageKeyAt(tm.Parent)
	if err != nil {
		return nil, err
	}
	var file *keyfile.TPMKey
	err = t.withTurn(ctx, func(l *link) error {
		if err := supported(l, tm.Algorithm); err != nil {
			return err
		}
		return t.orSRK(l, named, func(sk storageKey) (err error) {
			file, err = t.create(l, tm, sk)
			return err
		})
	})
	return file, err
}

// supported refuses an algorithm that the TPM does not have, naming those that
// it has.
func supported(l *link, a Algorithm) error {
	if !slices.Contains(Algorithms(), a) {
		return fmt.Errorf("no such algorithm: %d", a)
	}
	ok, err := hasAlgorithm(l, a)
	if ok || err != nil {
		return err
	}
	list, err := algorithms(l)
	if err != nil {
		return err
	}
	e := &UnsupportedError{What: a.String()}
	for _, has := range list {
		e.Supported = append(e.Supported, has.String())
	}
	return e
}

func (t *TPM) create(l *link, tm Template, sk storageKey) (file *keyfile.TPMKey, err error) {
	value := authValue(tm.Auth, crypto.SHA256)
	defer clear(value)
	public := tm.Algorithm.public(len(value) == 0)
	policy, err := tm.policy(l, &public)
	if err != nil {
		return nil, err
	}
	err = t.withSession(l, sk, tm.ParentName, func(s *session) error {
		return t.withParent(l, sk, func(p *parent) error {
			if err := l.alive(); err != nil {
				return err
			}
			rsp, err := tpm2.Create{
				ParentHandle: p.auth(s.use(nil, true)),
				InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
					UserAuth: tpm2.TPM2BAuth{Buffer: value},
				}},
				InPublic: tpm2.New2B(public),
			}.Execute(l)
			if err != nil {
				return fmt.Errorf("making the key under %v: %w", sk, l.command("TPM2_Create", err))
			}
			file, err = keyfile.NewLoadable(tpm2.Marshal(rsp.OutPublic), tpm2.Marshal(rsp.OutPrivate), sk.fileParent(), len(value) == 0)
			if err == nil {
				file.Policy = policy
			}
			return err
		})
	})
	return file, err
}

// policy returns the commands of the policy of a key that is bound to PCRs, in
// the order of create_tpm2_key, and writes their digest into its public area.
func (tm Template) policy(l *link, public *tpm2.TPMTPublic) ([]keyfile.Policy, error) {
	if len(tm.PCRs) == 0 {
		return nil, nil
	}
	s := keyfile.PCRSelection{Hash: uint16(tpm2.TPMAlgSHA256), PCRs: slices.Sorted(slices.Values(tm.PCRs))}
	if s.PCRs = slices.Compact(s.PCRs); s.PCRs[0] < 0 || s.PCRs[len(s.PCRs)-1] > 23 {
		return nil, fmt.Errorf("PCRs %v: there are 0 to 23", s.PCRs)
	}
	digest, err := pcrDigest(l, crypto.SHA256, []keyfile.PCRSelection{s})
	if err != nil {
		return nil, err
	}
	var list []keyfile.Policy
	if len(tm.Auth) > 0 {
		list = append(list, keyfile.Policy{CommandCode: keyfile.PolicyAuthValue})
	}
	list = append(list, keyfile.NewPCRPolicy(s, digest))
	steps, err := newSteps(list, crypto.SHA256)
	public.AuthPolicy.Buffer = stepsDigest(crypto.SHA256, make([]byte, crypto.SHA256.Size()), steps)
	public.ObjectAttributes.UserWithAuth = false
	return list, err
}

// public returns the public area of a new key. RSA keys may also decrypt: on a
// TPM without SHA-512, rsa-sha2-512 needs it.
func (a Algorithm) public(noDA bool) tpm2.TPMTPublic {
	p := tpm2.TPMTPublic{
		NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{
			FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true,
			UserWithAuth: true, SignEncrypt: true, NoDA: noDA,
		},
	}
	if curve, ok := a.curve(); ok {
		p.Type = tpm2.TPMAlgECC
		p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: curve})
		p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
		return p
	}
	p.Type = tpm2.TPMAlgRSA
	p.ObjectAttributes.Decrypt = true
	p.Parameters = tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: tpm2.TPMKeyBits(a.Bits())})
	p.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	return p
}
