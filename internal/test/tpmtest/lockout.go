package tpmtest

import (
	"encoding/binary"
	"fmt"
)

// Lockout is the state of a TPM's protection against dictionary attacks (TPM 2.0
// Part 1, 19.8).
type Lockout struct {
	Counter int  // wrong auth values that count now
	Locked  bool // the TPM accepts no auth value now
}

// Properties of a TPM (TPM 2.0 Part 2, 6.13).
const (
	propertyPermanent = 0x200 // TPMA_PERMANENT
	propertyCounter   = 0x20e

	inLockout = 1 << 9 // in TPMA_PERMANENT
)

// Lockout reads the counter. There must be no other connection to the TPM.
func (s *SWTPM) Lockout() (Lockout, error) { return lockout(s.command) }

// Lockout reads the counter, between the commands of other connections.
func (p *Tap) Lockout() (Lockout, error) { return lockout(p.command) }

func lockout(command func(uint32, []byte) ([]byte, error)) (l Lockout, err error) {
	properties := map[uint32]uint32{}
	var b []byte
	b = binary.BigEndian.AppendUint32(b, 6) // TPM_CAP_TPM_PROPERTIES
	b = binary.BigEndian.AppendUint32(b, propertyPermanent)
	b = binary.BigEndian.AppendUint32(b, 64)
	data, err := command(tpmGetCapability, b)
	if err != nil {
		return l, err
	}
	// moreData (1), capability (4), count (4), pairs of property and value
	if len(data) < 9 || uint64(len(data)-9) != 8*uint64(binary.BigEndian.Uint32(data[5:])) {
		return l, fmt.Errorf("TPM2_GetCapability: odd answer %x", data)
	}
	for p := data[9:]; len(p) > 0; p = p[8:] {
		properties[binary.BigEndian.Uint32(p)] = binary.BigEndian.Uint32(p[4:])
	}
	for _, property := range []uint32{propertyPermanent, propertyCounter} {
		if _, ok := properties[property]; !ok {
			return l, fmt.Errorf("TPM2_GetCapability: property %#x is not there", property)
		}
	}
	return Lockout{
		Counter: int(properties[propertyCounter]),
		Locked:  properties[propertyPermanent]&inLockout != 0,
	}, nil
}
