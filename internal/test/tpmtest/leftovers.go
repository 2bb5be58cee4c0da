package tpmtest

import (
	"encoding/binary"
	"fmt"
)

// Handle kinds, as the first handle of their range (TPM 2.0 Part 2, 7.4).
const (
	loadedSessions   = 0x02000000
	savedSessions    = 0x03000000
	transientObjects = 0x80000000
)

// Handles lists the handles of one kind that are in the TPM, from the given handle
// on. There must be no other connection to the TPM.
func (s *SWTPM) Handles(first uint32) ([]uint32, error) {
	var p []byte
	p = binary.BigEndian.AppendUint32(p, 1) // TPM_CAP_HANDLES
	p = binary.BigEndian.AppendUint32(p, first)
	p = binary.BigEndian.AppendUint32(p, 254)
	data, err := s.command(tpmGetCapability, p)
	if err != nil {
		return nil, err
	}
	// moreData (1), capability (4), count (4), handles
	if len(data) < 9 || uint64(len(data)-9) != 4*uint64(binary.BigEndian.Uint32(data[5:])) {
		return nil, fmt.Errorf("TPM2_GetCapability: odd answer %x", data)
	}
	var handles []uint32
	for h := data[9:]; len(h) > 0; h = h[4:] {
		handles = append(handles, binary.BigEndian.Uint32(h))
	}
	return handles, nil
}

// Leftovers describes the transient objects and the sessions that are in the TPM,
// one per line.
func (s *SWTPM) Leftovers() ([]string, error) {
	var left []string
	for _, kind := range []struct {
		first uint32
		name  string
	}{
		{transientObjects, "transient object"},
		{loadedSessions, "loaded session"},
		{savedSessions, "saved session"},
	} {
		handles, err := s.Handles(kind.first)
		if err != nil {
			return nil, err
		}
		for _, h := range handles {
			left = append(left, fmt.Sprintf("%s %#08x", kind.name, h))
		}
	}
	return left, nil
}

func (s *SWTPM) checkLeftovers() {
	if s.PID() == 0 {
		return
	}
	left, err := s.Leftovers()
	if err != nil {
		s.t.Errorf("tpmtest: looking for leftovers: %v (is a connection still open?)", err)
	}
	for _, l := range left {
		s.t.Errorf("tpmtest: left in the TPM: %s", l)
	}
}
