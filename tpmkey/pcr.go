package tpmkey

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// pcr is one PCR of one bank.
type pcr struct {
	bank  uint16
	index int
}

// matchPCRs returns nil if the PCRs have the values that a policy requires, and a
// [PCRError] if they do not.
func matchPCRs(l *link, hash crypto.Hash, want *keyfile.PCRs) error {
	digest, err := pcrDigest(l, hash, want.Selections)
	if err != nil || bytes.Equal(digest, want.Digest) {
		return err
	}
	e := &PCRError{}
	for _, s := range want.Selections {
		if len(s.PCRs) == 0 {
			continue
		}
		if e.Bank != "" {
			e.Bank += ", "
		}
		e.Bank += s.Bank()
		e.PCRs = append(e.PCRs, s.PCRs...)
	}
	slices.Sort(e.PCRs)
	e.PCRs = slices.Compact(e.PCRs)
	return e
}

// pcrDigest returns the digest of PCR values, in the order of TPM2_PolicyPCR (TPM
// 2.0 Part 1, 17.5). All values are from the same moment.
func pcrDigest(l *link, hash crypto.Hash, selections []keyfile.PCRSelection) ([]byte, error) {
	for range pcrTries {
		values, err := readPCRs(l, selections)
		if err != nil {
			return nil, err
		}
		if values == nil {
			continue
		}
		h := hash.New()
		for _, s := range selections {
			for _, i := range s.PCRs {
				h.Write(values[pcr{s.Hash, i}])
			}
		}
		return h.Sum(nil), nil
	}
	return nil, errors.New("reading the PCRs: they keep changing")
}

// readPCRs runs TPM2_PCR_Read, which returns at most eight values, until it has all
// of them. It returns nil if a PCR changed in between.
func readPCRs(l *link, selections []keyfile.PCRSelection) (map[pcr][]byte, error) {
	values := make(map[pcr][]byte)
	var counter uint32
	for first := true; ; first = false {
		missing, some := missingPCRs(selections, values)
		if len(missing.PCRSelections) == 0 {
			return values, nil
		}
		rsp, err := execute(l, "TPM2_PCR_Read", tpm2.PCRRead{PCRSelectionIn: missing})
		if err != nil {
			return nil, err
		}
		if !first && rsp.PCRUpdateCounter != counter {
			return nil, nil
		}
		counter = rsp.PCRUpdateCounter
		before := len(values)
		if !collectPCRs(rsp, values) {
			return nil, l.damaged("TPM2_PCR_Read")
		}
		if len(values) == before {
			bank := keyfile.PCRSelection{Hash: some.bank}.Bank()
			return nil, &UnsupportedError{
				What: fmt.Sprintf("PCR %d of the bank %s", some.index, bank),
				Why:  "this TPM does not have it, or the bank is turned off",
			}
		}
	}
}

// missingPCRs returns the PCRs whose values are not known yet, and one of them.
func missingPCRs(selections []keyfile.PCRSelection, values map[pcr][]byte) (list tpm2.TPMLPCRSelection, some pcr) {
	for _, s := range selections {
		var missing []uint
		for _, i := range s.PCRs {
			if values[pcr{s.Hash, i}] == nil {
				missing, some = append(missing, uint(i)), pcr{s.Hash, i}
			}
		}
		if len(missing) > 0 {
			list.PCRSelections = append(list.PCRSelections, tpm2.TPMSPCRSelection{
				Hash: tpm2.TPMAlgID(s.Hash), PCRSelect: tpm2.PCClientCompatible.PCRs(missing...),
			})
		}
	}
	return list, some
}

// collectPCRs adds the values of a response, which are in the order of its selection.
// It returns false if their number is not that of the selection.
func collectPCRs(rsp *tpm2.PCRReadResponse, values map[pcr][]byte) bool {
	digests := rsp.PCRValues.Digests
	for _, s := range rsp.PCRSelectionOut.PCRSelections {
		for i := range 8 * len(s.PCRSelect) {
			if s.PCRSelect[i/8]&(1<<(i%8)) == 0 {
				continue
			}
			if len(digests) == 0 || len(digests[0].Buffer) == 0 {
				return false
			}
			values[pcr{uint16(s.Hash), i}] = digests[0].Buffer
			digests = digests[1:]
		}
	}
	return len(digests) == 0
}
