package tpmkey

import (
	"context"
	"crypto"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/google/go-tpm/tpm2"
)

// Capabilities is what a TPM says of itself.
type Capabilities struct {
	Manufacturer string      // TPM_PT_MANUFACTURER, such as "IFX"
	Vendor       string      // TPM_PT_VENDOR_STRING_1 to _4, may be empty
	Firmware     string      // TPM_PT_FIRMWARE_VERSION_1 and _2, four numbers
	Algorithms   []Algorithm // of the keys that it can make
}

// Capabilities asks the TPM what it is and which keys it can make.
func (t *TPM) Capabilities(ctx context.Context) (c Capabilities, err error) {
	err = t.withTurn(ctx, func(l *link) error {
		c, err = capabilities(l)
		return err
	})
	return c, err
}

func capabilities(l *link) (Capabilities, error) {
	props, err := properties(l, tpm2.TPMPTManufacturer, 8)
	if err != nil {
		return Capabilities{}, err
	}
	c := Capabilities{
		Manufacturer: propertyText(props[tpm2.TPMPTManufacturer]),
		Vendor: strings.TrimSpace(propertyText(props[tpm2.TPMPTVendorString1], props[tpm2.TPMPTVendorString2],
			props[tpm2.TPMPTVendorString3], props[tpm2.TPMPTVendorString4])),
	}
	v1, v2 := props[tpm2.TPMPTFirmwareVersion1], props[tpm2.TPMPTFirmwareVersion2]
	c.Firmware = fmt.Sprintf("%d.%d.%d.%d", v1>>16, v1&0xFFFF, v2>>16, v2&0xFFFF)
	c.Algorithms, err = algorithms(l)
	return c, err
}

// algorithms returns those of [Algorithms] that the TPM takes (TPM2_TestParms).
func algorithms(l *link) ([]Algorithm, error) {
	var list []Algorithm
	for _, a := range Algorithms() {
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

func hasAlgorithm(l *link, a Algorithm) (bool, error) {
	public := a.public(false)
	_, err := tpm2.TestParms{Parameters: tpm2.TPMTPublicParms{Type: public.Type, Parameters: public.Parameters}}.Execute(l)
	err = l.command("TPM2_TestParms", err)
	var f1 tpm2.TPMFmt1Error
	if errors.As(err, &f1) {
		return false, nil // something is wrong with the parameters
	}
	return err == nil, err
}

// hasHash reports whether the TPM knows a hash. It is asked once.
func (t *TPM) hasHash(l *link, hash crypto.Hash) (bool, error) {
	if t.hashes == nil {
		known, err := hashes(l)
		if err != nil {
			return false, err
		}
		t.hashes = known
	}
	return t.hashes[uint16(hashAlg(hash))], nil
}

func hashes(l *link) (map[uint16]bool, error) {
	known := make(map[uint16]bool)
	for first, more := uint32(0), true; more; {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapAlgs, Property: first, PropertyCount: 64}.Execute(l)
		if err != nil {
			return nil, l.command("TPM2_GetCapability", err)
		}
		algs, err := rsp.CapabilityData.Data.Algorithms()
		if err != nil {
			return nil, l.command("TPM2_GetCapability", err)
		}
		for _, p := range algs.AlgProperties {
			if p.AlgProperties.Hash {
				known[uint16(p.Alg)] = true
			}
			first = uint32(p.Alg) + 1
		}
		more = bool(rsp.MoreData) && len(algs.AlgProperties) > 0
	}
	return known, nil
}

// properties reads count TPM properties, from first on.
func properties(l *link, first tpm2.TPMPT, count uint32) (map[tpm2.TPMPT]uint32, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(first), PropertyCount: count}.Execute(l)
	if err != nil {
		return nil, l.command("TPM2_GetCapability", err)
	}
	list, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		return nil, l.command("TPM2_GetCapability", err)
	}
	m := make(map[tpm2.TPMPT]uint32, len(list.TPMProperty))
	for _, p := range list.TPMProperty {
		m[p.Property] = p.Value
	}
	return m, nil
}

// propertyText decodes properties that hold four characters each. A vendor may
// put anything there: what is not printable ASCII is left out.
func propertyText(values ...uint32) string {
	var b strings.Builder
	for _, v := range values {
		for _, c := range binary.BigEndian.AppendUint32(nil, v) {
			if c >= ' ' && c <= '~' {
				b.WriteByte(c)
			}
		}
	}
	return strings.TrimRight(b.String(), " ")
}
