package tpmkey

import (
	"bytes"
	"crypto"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/tpm-agent/tpm-agent/keyfile"
)

// matchPCRs returns nil if the PCRs have the values that a policy requires, and a
// [PCRError] if they do not.
func matchPCRs(l *link, hash crypto.Hash, want *keyfile.PCRs) error {
	digest, err := pcrDigest(l, hash, want.Selections)
	if err != nil || bytes.Equal(digest, want.Digest) {
		return err
	}
	e := &PCRError{}
	var banks []string
	for _, s := range want.Selections {
		if len(s.PCRs) > 0 {
			banks = append(banks, s.Bank())
			e.PCRs = append(e.PCRs, s.PCRs...)
		}
	}
	e.Bank = strings.Join(banks, ", ")
	slices.Sort(e.PCRs)
	e.PCRs = slices.Compact(e.PCRs)
	return e
}

// pcrDigest returns the digest of PCR values, in the order of TPM2_PolicyPCR (TPM 2.0
// Part 1, 17.5). All values are from the same moment.
func pcrDigest(l *link, hash crypto.Hash, selections []keyfile.PCRSelection) ([]byte, error) {
	for range pcrTries {
		digest, err := readPCRs(l, hash, selections)
		if digest != nil || err != nil {
			return digest, err
		}
	}
	return nil, errors.New("reading the PCRs: they keep changing")
}

// readPCRs runs TPM2_PCR_Read, which returns at most eight values, until it has all
// of them. It returns nil if a PCR changed in between.
func readPCRs(l *link, hash crypto.Hash, selections []keyfile.PCRSelection) ([]byte, error) {
	h := hash.New()
	var last *tpm2.PCRReadResponse
	for _, s := range selections {
		for missing := s.PCRs; len(missing) > 0; {
			rsp, err := execute(l, "TPM2_PCR_Read", tpm2.PCRRead{PCRSelectionIn: selectPCRs(s.Hash, missing)})
			if err != nil {
				return nil, err
			}
			if last != nil && rsp.PCRUpdateCounter != last.PCRUpdateCounter {
				return nil, nil
			}
			last = rsp
			values := rsp.PCRValues.Digests
			n := min(len(values), len(missing))
			if n == 0 || !bytes.Equal(tpm2.Marshal(rsp.PCRSelectionOut), tpm2.Marshal(selectPCRs(s.Hash, missing[:n]))) {
				return nil, &UnsupportedError{
					What: fmt.Sprintf("PCR %d of the bank %s", missing[0], s.Bank()),
					Why:  "this TPM does not have it, or the bank is turned off",
				}
			}
			for _, v := range values[:n] {
				h.Write(v.Buffer)
			}
			missing = missing[n:]
		}
	}
	return h.Sum(nil), nil
}

func selectPCRs(bank uint16, pcrs []int) tpm2.TPMLPCRSelection {
	var list []uint
	for _, i := range pcrs {
		list = append(list, uint(i))
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{
		{Hash: tpm2.TPMAlgID(bank), PCRSelect: tpm2.PCClientCompatible.PCRs(list...)},
	}}
}
