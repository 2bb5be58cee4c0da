package keyfile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
)

// The policy commands whose parameters this package reads (TPM_CC, TPM 2.0 Part 2,
// 6.5.2).
const (
	policyAuthorize uint32 = 0x16a
	policyAuthValue uint32 = 0x16b
	// PolicyPCR is the command code of a policy that PCRs must satisfy.
	PolicyPCR uint32 = 0x17f
)

// The limits of what a TPM takes: no TPM has 16 banks (HASH_COUNT), a PC has 24 PCRs,
// and no digest is longer than that of SHA-512.
const (
	maxBanks     = 16
	maxPCRSelect = 4
	maxPolicyRef = 64
)

// Command returns the command's name, such as "PolicyPCR", or its number if it is none
// of TPM 2.0's policy commands.
func (p Policy) Command() string {
	names := map[uint32]string{
		0x149: "PolicyNV", 0x151: "PolicySecret", 0x160: "PolicySigned", policyAuthorize: "PolicyAuthorize",
		policyAuthValue: "PolicyAuthValue", 0x16c: "PolicyCommandCode", 0x16d: "PolicyCounterTimer",
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

// PCRs is the content of a PolicyPCR in a key file: which PCRs, and the digest of their
// values, made with the key's nameAlg.
type PCRs struct {
	Selections []PCRSelection
	// Selection is the TPML_PCR_SELECTION as it is in the file. The policy digest
	// covers these octets.
	Selection []byte
	Digest    []byte
}

// PCRs reads the parameters of a PolicyPCR whose digest has size octets:
// TPML_PCR_SELECTION and the bare digest, as create_tpm2_key writes them, or the draft's
// TPM2B_DIGEST and TPML_PCR_SELECTION. The two forms cannot be confused: no selection
// begins with the size of a digest, which would mean two million banks.
func (p Policy) PCRs(size int) (*PCRs, error) {
	if p.CommandCode != PolicyPCR {
		return nil, malformed("policy", 0, "a %s where a PolicyPCR should be", p.Command())
	}
	c := newCursor(p.CommandPolicy)
	var digest cursor
	draft := len(c.String) > 1 && int(binary.BigEndian.Uint16(c.String)) == size
	if draft {
		digest = c.sized("PolicyPCR digest")
	}
	r := new(PCRs)
	r.parseSelection(&c)
	if !draft {
		digest, c = c, cursor{nil, c.end, c.err}
	}
	if len(digest.String) != size {
		c.malformed("PolicyPCR digest", digest.offset(), "%d octets, the digest has %d", len(digest.String), size)
	}
	r.Digest = bytes.Clone(digest.String)
	if c.done("PolicyPCR"); *c.err != nil {
		return nil, *c.err
	}
	return r, nil
}

// parseSelection reads a TPML_PCR_SELECTION (TPM 2.0 Part 2, 10.9.7).
func (r *PCRs) parseSelection(c *cursor) {
	const field = "PolicyPCR selection"
	whole, start := c.String, c.offset()
	count := c.uint32(field)
	if count > maxBanks {
		c.malformed(field, start, "%d banks, at most %d are allowed", count, maxBanks)
	}
	selected := 0
	for range min(count, maxBanks) {
		s := parseBank(c, field)
		if slices.ContainsFunc(r.Selections, func(before PCRSelection) bool { return before.Hash == s.Hash }) {
			c.malformed(field, c.offset(), "the bank %s is there twice", s.Bank())
		}
		r.Selections = append(r.Selections, s)
		selected += len(s.PCRs)
	}
	if selected == 0 {
		c.malformed(field, start, "no PCR is selected")
	}
	r.Selection = bytes.Clone(whole[:len(whole)-len(c.String)])
}

// parseBank reads a TPMS_PCR_SELECTION. The lowest bit of the first octet is PCR 0.
func parseBank(c *cursor, field string) PCRSelection {
	s := PCRSelection{Hash: hashAlg(c, field)}
	start := c.offset()
	var size uint8
	var bits []byte
	switch {
	case *c.err != nil:
	case !c.ReadUint8(&size), size <= maxPCRSelect && !c.ReadBytes(&bits, int(size)):
		c.malformed(field, start, "ends too early")
	case size > maxPCRSelect:
		c.malformed(field, start, "%d octets for a bank, at most %d are allowed", size, maxPCRSelect)
	}
	for i := range 8 * len(bits) {
		if bits[i/8]&(1<<(i%8)) != 0 {
			s.PCRs = append(s.PCRs, i)
		}
	}
	return s
}

// Authorization is the content of a PolicyAuthorize in a key file: the policy before it
// counts because the signer has signed it.
type Authorization struct {
	Signer *Public
	// SignerArea is the signer's TPM2B_PUBLIC, its size included.
	SignerArea []byte
	Ref        []byte // policyRef, which is signed as well; often empty
	// Signature is a TPMT_SIGNATURE. It is nil in Policy, where it names the signer
	// of the AuthPolicy.
	Signature []byte
}

// Authorization reads the parameters of a PolicyAuthorize: TPM2B_PUBLIC, TPM2B_DIGEST,
// TPMT_SIGNATURE.
func (p Policy) Authorization() (*Authorization, error) {
	if p.CommandCode != policyAuthorize {
		return nil, malformed("policy", 0, "a %s where a PolicyAuthorize should be", p.Command())
	}
	c := newCursor(p.CommandPolicy)
	whole := c.String
	c.sized("PolicyAuthorize signer")
	a := &Authorization{SignerArea: bytes.Clone(whole[:len(whole)-len(c.String)])}
	if *c.err == nil {
		var err error
		if a.Signer, err = ParsePublic(a.SignerArea); err != nil {
			c.fail(fmt.Errorf("PolicyAuthorize signer: %w", err))
		}
	}
	ref := c.sized("PolicyAuthorize policyRef")
	if len(ref.String) > maxPolicyRef {
		c.malformed("PolicyAuthorize policyRef", ref.offset(), "%d octets, at most %d are allowed", len(ref.String), maxPolicyRef)
	}
	a.Ref = bytes.Clone(ref.String)
	a.Signature = parseSignature(&c)
	if c.done("PolicyAuthorize"); *c.err != nil {
		return nil, *c.err
	}
	return a, nil
}

// parseSignature reads a TPMT_SIGNATURE (TPM 2.0 Part 2, 11.3.4) of RSA or ECDSA. It
// returns nil for TPM_ALG_NULL.
func parseSignature(c *cursor) []byte {
	const field = "PolicyAuthorize signature"
	whole := c.String
	alg := c.uint16(field)
	parts := 1
	switch alg {
	case algNull:
		return nil
	case algRSASSA, algRSAPSS:
	case algECDSA:
		parts = 2
	default:
		c.fail(unsupported(field, c.offset()-2, algName(alg)))
	}
	hashAlg(c, field)
	for range parts {
		c.sized(field)
	}
	return bytes.Clone(whole[:len(whole)-len(c.String)])
}

// UsesAuth reports whether an auth value is needed to use the key, as far as the file
// can tell: the key has one, and the use of the key requires it.
func (k *TPMKey) UsesAuth() bool {
	if k.EmptyAuth {
		return false
	}
	asks := func(p Policy) bool { return p.CommandCode == policyAuthValue }
	return k.Public.Attributes.UserWithAuth() || slices.ContainsFunc(k.Policy, asks) ||
		slices.ContainsFunc(k.AuthPolicy, func(a AuthPolicy) bool { return slices.ContainsFunc(a.Policy, asks) })
}
