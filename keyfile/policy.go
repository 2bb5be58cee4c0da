package keyfile

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// The commands of a policy whose parameters this package reads (TPM_CC, TPM 2.0
// part 2, section 6.5.2).
const (
	PolicyAuthorize uint32 = 0x16a
	PolicyAuthValue uint32 = 0x16b
	PolicyPCR       uint32 = 0x17f
)

// The limits of what a TPM takes: HASH_COUNT banks are far fewer than 16, a PC
// has 24 PCRs, and no digest is longer than that of SHA-512.
const (
	maxBanks     = 16
	maxPCRSelect = 4
	maxPolicyRef = 64
)

// Command returns the command's name, such as "PolicyPCR", or its number if it
// is none of TPM 2.0's policy commands.
func (p Policy) Command() string {
	names := map[uint32]string{
		0x149: "PolicyNV", 0x151: "PolicySecret", 0x160: "PolicySigned", PolicyAuthorize: "PolicyAuthorize",
		PolicyAuthValue: "PolicyAuthValue", 0x16c: "PolicyCommandCode", 0x16d: "PolicyCounterTimer",
		0x16e: "PolicyCpHash", 0x16f: "PolicyLocality", 0x170: "PolicyNameHash", 0x171: "PolicyOR",
		0x172: "PolicyTicket", PolicyPCR: "PolicyPCR", 0x187: "PolicyPhysicalPresence",
		0x188: "PolicyDuplicationSelect", 0x18c: "PolicyPassword", 0x18f: "PolicyNvWritten",
		0x190: "PolicyTemplate", 0x192: "PolicyAuthorizeNV",
	}
	if name := names[p.CommandCode]; name != "" {
		return name
	}
	return fmt.Sprintf("command %#x", p.CommandCode)
}

// PCRSelection is a number of PCRs of one bank.
type PCRSelection struct {
	Hash uint16 // TPM_ALG_ID of the bank
	PCRs []int  // ascending, without duplicates
}

// Bank returns the bank's name as tpm2-tools spell it, such as "sha256".
func (s PCRSelection) Bank() string {
	names := map[uint16]string{
		algSHA1: "sha1", algSHA256: "sha256", algSHA384: "sha384", algSHA512: "sha512", algSM3: "sm3_256",
		algSHA3_256: "sha3_256", algSHA3_384: "sha3_384", algSHA3_512: "sha3_512",
	}
	if name := names[s.Hash]; name != "" {
		return name
	}
	return fmt.Sprintf("%#04x", s.Hash)
}

// PCRs is what a PolicyPCR in a key file says: which PCRs, and the digest of
// their values, made with the key's nameAlg.
type PCRs struct {
	Selections []PCRSelection
	// Selection is the TPML_PCR_SELECTION as it stands in the file: the
	// policy digest is made over these octets.
	Selection []byte
	Digest    []byte
}

// PCRs reads the parameters of a PolicyPCR whose digest has size octets. That is
// a TPML_PCR_SELECTION and the bare digest, as create_tpm2_key writes it. The
// form that the draft has is read, too: a TPM2B_DIGEST, then the selection. They
// cannot be mistaken for each other: no selection begins with the size of a
// digest, which would be two million banks.
func (p Policy) PCRs(size int) (*PCRs, error) {
	if p.CommandCode != PolicyPCR {
		return nil, malformed("policy", 0, "a %s where a PolicyPCR should be", p.Command())
	}
	c := newCursor(p.CommandPolicy)
	var digest cursor
	sizedFirst := len(c.String) > 1 && int(binary.BigEndian.Uint16(c.String)) == size
	if sizedFirst {
		var err error
		if digest, err = c.sized("PolicyPCR digest"); err != nil {
			return nil, err
		}
	}
	r := new(PCRs)
	if err := r.parseSelection(&c); err != nil {
		return nil, err
	}
	if !sizedFirst {
		digest, c = c, cursor{nil, c.end}
	}
	if len(digest.String) != size {
		return nil, malformed("PolicyPCR digest", digest.offset(), "%d octets, the digest has %d", len(digest.String), size)
	}
	r.Digest = bytes.Clone(digest.String)
	return r, c.done("PolicyPCR")
}

// parseSelection reads a TPML_PCR_SELECTION (TPM 2.0 part 2, section 10.9.7).
func (r *PCRs) parseSelection(c *cursor) error {
	const field = "PolicyPCR selection"
	whole, start := c.String, c.offset()
	count, err := c.uint32(field)
	if err != nil {
		return err
	}
	if count > maxBanks {
		return malformed(field, start, "%d banks, at most %d are allowed", count, maxBanks)
	}
	selected := 0
	for range count {
		s, err := parseBank(c)
		if err != nil {
			return err
		}
		for _, before := range r.Selections {
			if before.Hash == s.Hash {
				return malformed(field, c.offset(), "the bank %s is there twice", s.Bank())
			}
		}
		r.Selections = append(r.Selections, s)
		selected += len(s.PCRs)
	}
	if selected == 0 {
		return malformed(field, start, "no PCR is selected")
	}
	r.Selection = bytes.Clone(whole[:len(whole)-len(c.String)])
	return nil
}

// parseBank reads a TPMS_PCR_SELECTION. The lowest bit of the first octet is
// PCR 0.
func parseBank(c *cursor) (s PCRSelection, err error) {
	const field = "PolicyPCR selection"
	if s.Hash, err = hashAlg(c, field); err != nil {
		return s, err
	}
	start := c.offset()
	var size uint8
	var bits []byte
	if !c.ReadUint8(&size) || size <= maxPCRSelect && !c.ReadBytes(&bits, int(size)) {
		return s, malformed(field, start, "ends too early")
	}
	if size > maxPCRSelect {
		return s, malformed(field, start, "%d octets for a bank, at most %d are allowed", size, maxPCRSelect)
	}
	for i := range 8 * len(bits) {
		if bits[i/8]&(1<<(i%8)) != 0 {
			s.PCRs = append(s.PCRs, i)
		}
	}
	return s, nil
}

// Policy returns the PolicyPCR for the selected PCRs, 0 to 23, and the digest of their
// values, in the form that create_tpm2_key writes and reads.
func (s PCRSelection) Policy(digest []byte) Policy {
	bits := make([]byte, 3)
	for _, pcr := range s.PCRs {
		bits[pcr/8] |= 1 << (pcr % 8)
	}
	b := binary.BigEndian.AppendUint32(nil, 1)
	b = binary.BigEndian.AppendUint16(b, s.Hash)
	b = append(append(b, byte(len(bits))), bits...)
	return Policy{PolicyPCR, append(b, digest...)}
}

// Authorization is what a PolicyAuthorize in a key file says: the policy before
// it counts because the signer has signed it.
type Authorization struct {
	Signer *Public
	// SignerArea is the signer's TPM2B_PUBLIC, its size included.
	SignerArea []byte
	Ref        []byte // policyRef, which is signed as well; often empty
	// Signature is a TPMT_SIGNATURE, nil where the file has none: in Policy,
	// where it says who may sign the AuthPolicy.
	Signature []byte
}

// Authorization reads the parameters of a PolicyAuthorize: TPM2B_PUBLIC,
// TPM2B_DIGEST, TPMT_SIGNATURE.
func (p Policy) Authorization() (*Authorization, error) {
	if p.CommandCode != PolicyAuthorize {
		return nil, malformed("policy", 0, "a %s where a PolicyAuthorize should be", p.Command())
	}
	c := newCursor(p.CommandPolicy)
	whole := c.String
	area, err := c.sized("PolicyAuthorize signer")
	if err != nil {
		return nil, err
	}
	a := &Authorization{SignerArea: bytes.Clone(whole[:len(whole)-len(c.String)])}
	if a.Signer, err = parsePublic(cursor{whole[:len(a.SignerArea)], area.end}); err != nil {
		return nil, fmt.Errorf("PolicyAuthorize signer: %w", err)
	}
	ref, err := c.sized("PolicyAuthorize policyRef")
	if err != nil {
		return nil, err
	}
	if len(ref.String) > maxPolicyRef {
		return nil, malformed("PolicyAuthorize policyRef", ref.offset(), "%d octets, at most %d are allowed", len(ref.String), maxPolicyRef)
	}
	a.Ref = bytes.Clone(ref.String)
	a.Signature, err = parseSignature(&c)
	if err != nil {
		return nil, err
	}
	return a, c.done("PolicyAuthorize")
}

// parseSignature reads a TPMT_SIGNATURE (TPM 2.0 part 2, section 11.3.4) of
// RSA or ECDSA. TPM_ALG_NULL gives nil.
func parseSignature(c *cursor) ([]byte, error) {
	const field = "PolicyAuthorize signature"
	whole := c.String
	alg, err := c.uint16(field)
	if err != nil {
		return nil, err
	}
	parts := 1
	switch alg {
	case algNull:
		return nil, nil
	case algRSASSA, algRSAPSS:
	case algECDSA:
		parts = 2
	default:
		return nil, unsupported(field, c.offset()-2, algName(alg))
	}
	if _, err := hashAlg(c, field); err != nil {
		return nil, err
	}
	for range parts {
		if _, err := c.sized(field); err != nil {
			return nil, err
		}
	}
	return bytes.Clone(whole[:len(whole)-len(c.String)]), nil
}

// UsesAuth says whether an auth value is needed to use the key, as far as the
// file can tell: it has one, and what authorizes its use asks for it.
func (k *TPMKey) UsesAuth() bool {
	if k.EmptyAuth {
		return false
	}
	if k.Public.Attributes.UserWithAuth() || hasCommand(k.Policy, PolicyAuthValue) {
		return true
	}
	for _, signed := range k.AuthPolicy {
		if hasCommand(signed.Policy, PolicyAuthValue) {
			return true
		}
	}
	return false
}

func hasCommand(list []Policy, code uint32) bool {
	for _, p := range list {
		if p.CommandCode == code {
			return true
		}
	}
	return false
}
