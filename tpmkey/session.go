package tpmkey

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/google/go-tpm/tpm2"
)

const (
	// sessionAge and sessionUses bound the life of an authorization session that
	// never gets idle. A resource manager saves and loads the session around
	// every use by another program, and a session that is kept forever blocks the
	// TPM's context counter (TPM_RC_CONTEXT_GAP).
	sessionAge  = time.Minute
	sessionUses = 10000

	nonceSize    = 16
	sessionHash  = crypto.SHA256 // of the session that is kept
	sessionKeyAE = 16            // octets of the AES key for parameter encryption
)

// session is an HMAC or policy session in the TPM (TPM 2.0 Part 1, 19.6). It is bound
// to no object, so one HMAC session serves every key under one storage key, each with
// its own auth value. A session that proves an auth value is salted.
//
// go-tpm's own sessions fix the auth value at their start, and cut it at the first
// zero octet where they should trim zeros at the end. The TPM would refuse one in
// eight auth values that are digests, and count each refusal as a wrong PIN.
type session struct {
	handle      tpm2.TPMHandle
	hash        crypto.Hash
	salted      []byte // the Name of the storage key that the salt was encrypted to
	key         []byte // sessionKey of Part 1, 19.6.8; empty without a salt
	nonceCaller []byte
	nonceTPM    []byte
	started     time.Time
	uses        int
	boot        bootCount
	ended       bool // by its last use
}

// withSession calls fn with the authorization session that is kept, or with a new
// one. The session is salted to the storage key sk, whose Name must be want; nil
// accepts any. A session that is salted to a different storage key is ended: the
// holder of that storage key's private part could compute the session key and guess
// the auth value from the HMAC. If the TPM was reset and does not know the kept
// session, withSession calls fn again with a new one.
func (t *TPM) withSession(l *link, sk storageKey, want []byte, fn func(*session) error) error {
	if s := t.session; s != nil && (s.uses >= sessionUses || time.Since(s.started) > sessionAge || want != nil && !bytes.Equal(s.salted, want)) {
		if err := t.endSession(l); err != nil {
			return err
		}
	}
	kept := t.session != nil
	if !kept {
		err := l.making(firstSession, func() (err error) {
			t.session, err = t.saltedSession(l, sk, want, tpm2.TPMSEHMAC, sessionHash)
			return err
		})
		if err != nil {
			return err
		}
	}
	t.session.uses++
	err := fn(t.session)
	if kept && sessionGone(err) {
		t.session = nil
		return t.withSession(l, sk, want, fn)
	}
	return err
}

// sessionGone reports whether err says that the first session of a command does not
// exist.
func sessionGone(err error) bool {
	if isRC(err, tpm2.TPMRCReferenceS0) {
		return true
	}
	f1, ok := errors.AsType[tpm2.TPMFmt1Error](err)
	if !ok || !isRC(err, tpm2.TPMRCHandle, tpm2.TPMRCValue) {
		return false
	}
	ofSession, _ := f1.Session()
	return ofSession
}

// saltedSession starts a session that is salted to the storage key sk, whose Name
// must be want; nil accepts any.
func (t *TPM) saltedSession(l *link, sk storageKey, want []byte, kind tpm2.TPMSE, hash crypto.Hash) (s *session, err error) {
	err = t.withParent(l, sk, func(p *parent) (err error) {
		if err := p.mustBe(want); err != nil {
			return fmt.Errorf("salting a session to %v: %w", sk, err)
		}
		s, err = startSession(l, p, kind, hash)
		return err
	})
	return s, err
}

// startSession runs TPM2_StartAuthSession (TPM 2.0 Part 3, 11.1) with a salt that
// only p can decrypt, or without salt if p is nil.
func startSession(l *link, p *parent, kind tpm2.TPMSE, hash crypto.Hash) (*session, error) {
	s := &session{started: time.Now(), nonceCaller: make([]byte, nonceSize), hash: hash}
	rand.Read(s.nonceCaller)
	command := tpm2.StartAuthSession{
		TPMKey:      tpm2.TPMRHNull,
		Bind:        tpm2.TPMRHNull,
		NonceCaller: tpm2.TPM2BNonce{Buffer: s.nonceCaller},
		SessionType: kind,
		Symmetric:   tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
		AuthHash:    hashAlgs[hash],
	}
	var salt []byte
	if p != nil {
		kem, err := tpm2.ImportEncapsulationKey(p.public)
		if err == nil {
			salt, command.EncryptedSalt.Buffer, err = tpm2.CreateEncryptedSalt(rand.Reader, kem)
		}
		if err != nil {
			return nil, fmt.Errorf("salting a session to the storage key: %w", err)
		}
		defer clear(salt)
		command.TPMKey = p.handle
		command.Symmetric = tpm2.TPMTSymDef{
			Algorithm: tpm2.TPMAlgAES,
			KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(8*sessionKeyAE)),
			Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
		}
	}
	rsp, err := execute(l, "TPM2_StartAuthSession", command)
	if err != nil {
		return nil, err
	}
	s.handle, s.boot = rsp.SessionHandle, l.boot
	s.nonceTPM = rsp.NonceTPM.Buffer
	if p != nil {
		s.salted = p.name.Buffer
		s.key = tpm2.KDFa(hash, salt, "ATH", s.nonceTPM, s.nonceCaller, 8*hash.Size())
	}
	return s, nil
}

// endSession flushes the kept session, if there is one.
func (t *TPM) endSession(l *link) error {
	s := t.session
	t.session = nil
	if s == nil {
		return nil
	}
	clear(s.key)
	err := l.flush(s.handle)
	if isRC(err, tpm2.TPMRCHandle, tpm2.TPMRCValue) {
		return nil // the TPM was reset, and the session is gone with it
	}
	return err
}

// use returns the session for one command on the entity whose auth value is auth.
// With decryptSession, the first parameter of the command is encrypted on its way.
// Without continueSession, the TPM flushes the session if the command succeeds.
func (s *session) use(auth []byte, attributes byte) tpm2.Session {
	return &sessionUse{Session: tpm2.PasswordAuth(nil), session: s, auth: bytes.TrimRight(auth, "\x00"), attributes: attributes}
}

// sessionUse implements tpm2.Session for one command. What need not be done for an HMAC
// session here (initializing it, decrypting responses) is left to the embedded session,
// that of an empty password, which does nothing.
type sessionUse struct {
	tpm2.Session
	*session
	auth       []byte
	attributes byte
}

func (u *sessionUse) Handle() tpm2.TPMHandle    { return u.handle }
func (u *sessionUse) NonceTPM() tpm2.TPM2BNonce { return tpm2.TPM2BNonce{Buffer: u.nonceTPM} }
func (u *sessionUse) IsDecryption() bool        { return u.attributes&decryptSession != 0 }

// NewNonceCaller implements tpm2.Session.
func (u *sessionUse) NewNonceCaller() error {
	u.nonceCaller = make([]byte, nonceSize)
	rand.Read(u.nonceCaller)
	return nil
}

// Authorize implements tpm2.Session: cpHash and HMAC of Part 1, 16.7 and 19.6.5.
func (u *sessionUse) Authorize(cc tpm2.TPMCC, parms, addNonces []byte, names []tpm2.TPM2BName, _ int) (*tpm2.TPMSAuthCommand, error) {
	h := u.hash.New()
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(cc)))
	for _, name := range names {
		h.Write(name.Buffer)
	}
	h.Write(parms)
	mac := u.mac(h.Sum(nil), u.nonceCaller, u.nonceTPM, addNonces, u.attributes)
	return &tpm2.TPMSAuthCommand{
		Handle:        u.handle,
		Nonce:         tpm2.TPM2BNonce{Buffer: u.nonceCaller},
		Attributes:    sessionAttributes(u.attributes),
		Authorization: tpm2.TPM2BData{Buffer: mac},
	}, nil
}

// Validate implements tpm2.Session: rpHash and HMAC of Part 1, 16.8 and 19.6.5.
func (u *sessionUse) Validate(rc tpm2.TPMRC, cc tpm2.TPMCC, parms []byte, _ []tpm2.TPM2BName, _ int, auth *tpm2.TPMSAuthResponse) error {
	h := u.hash.New()
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(rc)))
	h.Write(binary.BigEndian.AppendUint32(nil, uint32(cc)))
	h.Write(parms)
	if auth.Attributes != sessionAttributes(u.attributes) {
		return errors.New("the session attributes of the response differ from those of the command")
	}
	mac := u.mac(h.Sum(nil), auth.Nonce.Buffer, u.nonceCaller, nil, u.attributes)
	if !hmac.Equal(mac, auth.Authorization.Buffer) {
		return errors.New("the response is not authentic: its HMAC is wrong")
	}
	u.nonceTPM = auth.Nonce.Buffer
	u.ended = u.attributes&continueSession == 0
	return nil
}

// mac computes the HMAC of Part 1, 19.6.5, equation 17 (unbound session), keyed with
// the session key and the entity's auth value. A policy session that has neither has
// no HMAC.
func (u *sessionUse) mac(pHash, nonceNewer, nonceOlder, addNonces []byte, attributes byte) []byte {
	key := slices.Concat(u.key, u.auth)
	if len(key) == 0 {
		return nil
	}
	defer clear(key)
	m := hmac.New(u.hash.New, key)
	m.Write(pHash)
	m.Write(nonceNewer)
	m.Write(nonceOlder)
	m.Write(addNonces)
	m.Write([]byte{attributes})
	return m.Sum(nil)
}

// Encrypt implements tpm2.Session: parameter encryption of Part 1, 21.3.
func (u *sessionUse) Encrypt(parameter []byte) error {
	value := slices.Concat(u.key, u.auth)
	defer clear(value)
	keyIV := tpm2.KDFa(u.hash, value, "CFB", u.nonceCaller, u.nonceTPM, 8*(sessionKeyAE+aes.BlockSize))
	defer clear(keyIV)
	block, err := aes.NewCipher(keyIV[:sessionKeyAE])
	if err != nil {
		return err
	}
	//lint:ignore SA1019 the TPM uses CFB; the session's HMAC authenticates it
	cipher.NewCFBEncrypter(block, keyIV[sessionKeyAE:]).XORKeyStream(parameter, parameter)
	return nil
}
