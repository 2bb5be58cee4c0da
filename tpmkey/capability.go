package tpmkey

import (
	"context"
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2"
)

// Capabilities describes a TPM in its own words.
type Capabilities struct {
	Manufacturer string      // TPM_PT_MANUFACTURER, such as "IFX"
	Vendor       string      // TPM_PT_VENDOR_STRING_1 to _4, may be empty
	Firmware     string      // TPM_PT_FIRMWARE_VERSION_1 and _2, four numbers
	Algorithms   []Algorithm // of the keys that it can create
}

// Capabilities asks the TPM what it is and which keys it can create.
func (t *TPM) Capabilities(ctx context.Context) (c Capabilities, err error) {
	err = t.withTurn(ctx, func(l *link) error {
		props, err := properties(l, tpm2.TPMPTManufacturer, 8)
		if err != nil {
			return err
		}
		c.Manufacturer = propertyText(props[tpm2.TPMPTManufacturer])
		c.Vendor = strings.TrimSpace(propertyText(props[tpm2.TPMPTVendorString1], props[tpm2.TPMPTVendorString2],
			props[tpm2.TPMPTVendorString3], props[tpm2.TPMPTVendorString4]))
		v1, v2 := props[tpm2.TPMPTFirmwareVersion1], props[tpm2.TPMPTFirmwareVersion2]
		c.Firmware = fmt.Sprintf("%d.%d.%d.%d", v1>>16, v1&0xFFFF, v2>>16, v2&0xFFFF)
		c.Algorithms, err = supportedAlgorithms(l)
		return err
	})
	return c, err
}

func supportedAlgorithms(l *link) ([]Algorithm, error) {
	var list []Algorithm
	for a := ECDSAP256; a <= RSA4096; a++ {
		ok, err := hasAlgorithm(l, a)
		if err != nil {
			return nil, err
		}
		if ok {
			list = append(list, a)
		}
	}
	return list, nil
}

// hasAlgorithm asks the TPM by TPM2_TestParms.
func hasAlgorithm(l *link, a Algorithm) (bool, error) {
	public := a.public(false)
	_, err := execute(l, "TPM2_TestParms", tpm2.TestParms{Parameters: tpm2.TPMTPublicParms{Type: public.Type, Parameters: public.Parameters}})
	if _, refused := errors.AsType[tpm2.TPMFmt1Error](err); refused {
		return false, nil // it refuses the parameters
	}
	return err == nil, err
}

// hasHash reports whether the TPM knows a hash. It asks the TPM once.
func hasHash(t *TPM, l *link, hash crypto.Hash) (bool, error) {
	if t.hashes == nil {
		list, err := query(l, tpm2.TPMCapAlgs, 0, 0xFFFF, (*tpm2.TPMUCapabilities).Algorithms,
			func(list *tpm2.TPMLAlgProperty) []tpm2.TPMSAlgProperty { return list.AlgProperties },
			func(p tpm2.TPMSAlgProperty) uint32 { return uint32(p.Alg) })
		if err != nil {
			return false, err
		}
		t.hashes = make(map[tpm2.TPMAlgID]bool)
		for _, p := range list {
			t.hashes[p.Alg] = p.AlgProperties.Hash
		}
	}
	return t.hashes[hashAlgs[hash]], nil
}

// properties reads count TPM properties, from first on. One that is missing in the
// result is unknown, not 0.
func properties(l *link, first tpm2.TPMPT, count uint32) (map[tpm2.TPMPT]uint32, error) {
	list, err := query(l, tpm2.TPMCapTPMProperties, uint32(first), uint32(first)+count-1, (*tpm2.TPMUCapabilities).TPMProperties,
		func(list *tpm2.TPMLTaggedTPMProperty) []tpm2.TPMSTaggedProperty { return list.TPMProperty },
		func(p tpm2.TPMSTaggedProperty) uint32 { return uint32(p.Property) })
	m := make(map[tpm2.TPMPT]uint32, len(list))
	for _, p := range list {
		m[p.Property] = p.Value
	}
	return m, err
}

// query runs TPM2_GetCapability (TPM 2.0 Part 3, 30.2) for the values from first to
// last. The TPM may return fewer than it was asked for, with moreData set; then query
// asks again.
func query[L, T any](l *link, what tpm2.TPMCap, first, last uint32, decode func(*tpm2.TPMUCapabilities) (*L, error), items func(*L) []T, number func(T) uint32) ([]T, error) {
	const name = "TPM2_GetCapability"
	var all []T
	for first <= last {
		rsp, err := execute(l, name, tpm2.GetCapability{Capability: what, Property: first, PropertyCount: min(last-first+1, 64)})
		if err != nil {
			return nil, err
		}
		list, err := decode(&rsp.CapabilityData.Data)
		if err != nil {
			return nil, l.command(name, err)
		}
		part := items(list)
		all = append(all, part...)
		if !rsp.MoreData || len(part) == 0 {
			break
		}
		next := number(part[len(part)-1]) + 1
		if next <= first {
			return nil, l.damaged(name)
		}
		first = next
	}
	return all, nil
}

// propertyText decodes properties that hold four characters each. A vendor may put
// anything there: only printable ASCII is kept.
func propertyText(values ...uint32) string {
	var text []byte
	for _, v := range values {
		text = binary.BigEndian.AppendUint32(text, v)
	}
	text = slices.DeleteFunc(text, func(c byte) bool { return c < ' ' || c > '~' })
	return strings.TrimRight(string(text), " ")
}

// Lockout is the state of a TPM's protection against guessing (TPM 2.0 Part 1, 19.8).
// The TPM counts the wrong auth values of all protected objects together.
type Lockout struct {
	// Tries is how many wrong auth values the TPM takes before it locks. 0 means
	// that it is locked. -1 means that there is no limit: the key does not take
	// part, or the TPM does not count.
	Tries int
	// Wait is the longest time until the TPM gives one try back, while the
	// machine runs. It is 0 if there is none to give back, or if it is unknown.
	Wait time.Duration

	Counter  int           // TPM_PT_LOCKOUT_COUNTER: wrong auth values so far
	Max      int           // TPM_PT_MAX_AUTH_FAIL: the Counter at which it locks
	Interval time.Duration // TPM_PT_LOCKOUT_INTERVAL: after it the Counter goes down by one
}

// Lockout asks the TPM for the state of its lockout.
func (t *TPM) Lockout(ctx context.Context) (lo Lockout, err error) {
	err = t.withTurn(ctx, func(l *link) error {
		lo, err = l.lockout()
		return err
	})
	return lo, err
}

// Lockout asks the TPM how many wrong auth values it takes for this key. A key that
// does not take part in the lockout has no limit, and the TPM is not asked.
func (k *Key) Lockout(ctx context.Context) (Lockout, error) {
	if k.file.Public.Attributes.NoDA() || k.policy != nil && !k.policy.usesAuth() {
		return Lockout{Tries: -1}, nil
	}
	return k.tpm.Lockout(ctx)
}

// lockout reads the properties of the lockout, in one command.
func (l *link) lockout() (Lockout, error) {
	const count = 17 // as far as TPM_PT_LOCKOUT_INTERVAL (TPM 2.0 Part 2, 6.13)
	p, err := properties(l, tpm2.TPMPTPermanent, count)
	if err != nil {
		return Lockout{}, err
	}
	lo := Lockout{
		Counter:  int(p[tpm2.TPMPTLockoutCounter]),
		Max:      int(p[tpm2.TPMPTMaxAuthFail]),
		Interval: time.Duration(p[tpm2.TPMPTLockoutInterval]) * time.Second,
	}
	lo.Tries = max(lo.Max-lo.Counter, 0)
	switch {
	case p[tpm2.TPMPTPermanent]&(1<<9) != 0: // inLockout (TPM 2.0 Part 2, 8.6)
		lo.Tries = 0
	case lo.Interval == 0 && lo.Tries > 0:
		lo.Tries = -1 // it does not count (TPM 2.0 Part 3, 25.3)
	}
	if lo.Counter > 0 || lo.Tries == 0 {
		lo.Wait = lo.Interval
	}
	return lo, nil
}

// authError converts a refusal of an auth value into an [AuthError] or
// [LockoutError], with the state of the lockout if the TPM tells it. It returns other
// errors as they are.
func (l *link) authError(err error) error {
	switch {
	case isRC(err, tpm2.TPMRCBadAuth):
		return &AuthError{Left: -1, err: err} // not protected by the lockout
	case isRC(err, tpm2.TPMRCAuthFail):
		left := -1
		if lo, loErr := l.lockout(); loErr == nil {
			left = lo.Tries
		}
		return &AuthError{Left: left, err: err}
	case isRC(err, tpm2.TPMRCLockout):
		lo, _ := l.lockout()
		return &LockoutError{Wait: lo.Wait, err: err}
	default:
		return err
	}
}
