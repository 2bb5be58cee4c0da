package keyfile

import (
	"bytes"
	"crypto/elliptic"
	"reflect"
	"slices"
	"testing"
)

// pcrPolicy returns the policy digest of the current PCR values, computed by
// tpm2-tools.
func pcrPolicy(parts ...[]byte) Policy {
	return Policy{PolicyPCR, bytes.Join(parts, nil)}
}

var (
	onePCR     = unhex("00000001 000b 03 800000")
	oneDigest  = bytes.Repeat([]byte{0xd1}, 32)
	twoBanks   = unhex("00000002 0004 03 010000 000b 03 800810")
	emptyBanks = unhex("00000002 0004 03 000000 000b 04 80000000")
)

func TestPCRs(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		policy    Policy
		want      []PCRSelection
		selection []byte
	}{
		"bare":        {pcrPolicy(onePCR, oneDigest), []PCRSelection{{algSHA256, []int{7}}}, onePCR},
		"draft":       {pcrPolicy(unhex("0020"), oneDigest, onePCR), []PCRSelection{{algSHA256, []int{7}}}, onePCR},
		"two banks":   {pcrPolicy(twoBanks, oneDigest), []PCRSelection{{algSHA1, []int{0}}, {algSHA256, []int{7, 11, 20}}}, twoBanks},
		"empty banks": {pcrPolicy(emptyBanks, oneDigest), []PCRSelection{{algSHA1, nil}, {algSHA256, []int{7}}}, emptyBanks},
	} {
		got, err := tt.policy.PCRs(32)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !reflect.DeepEqual(got.Selections, tt.want) || !bytes.Equal(got.Selection, tt.selection) || !bytes.Equal(got.Digest, oneDigest) {
			t.Errorf("%s: %+v", name, got)
		}
	}
	if bank := (PCRSelection{Hash: algSHA256}).Bank(); bank != "sha256" {
		t.Errorf("bank %q", bank)
	}
	if bank := (PCRSelection{Hash: 0x1234}).Bank(); bank != "0x1234" {
		t.Errorf("bank %q", bank)
	}
}

func TestPCRSelectionPolicy(t *testing.T) {
	t.Parallel()
	p := PCRSelection{algSHA256, []int{7}}.Policy(oneDigest)
	if want := pcrPolicy(onePCR, oneDigest); !reflect.DeepEqual(p, want) {
		t.Errorf("%+v, want %+v", p, want)
	}
	all := make([]int, 24)
	for i := range all {
		all[i] = i
	}
	r, err := PCRSelection{algSHA384, all}.Policy(make([]byte, 48)).PCRs(48)
	if err != nil || !slices.Equal(r.Selections[0].PCRs, all) || r.Selections[0].Hash != algSHA384 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestPCRsRefused(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		policy Policy
		texts  []string
	}{
		"another command": {Policy{policyAuthValue, nil}, []string{"a PolicyAuthValue where"}},
		"empty":           {pcrPolicy(), []string{"selection", "ends too early"}},
		"no digest":       {pcrPolicy(onePCR), []string{"digest", "0 octets"}},
		"short digest":    {pcrPolicy(onePCR, oneDigest[1:]), []string{"31 octets"}},
		"long digest":     {pcrPolicy(onePCR, oneDigest, []byte{1}), []string{"33 octets"}},
		"after the draft": {pcrPolicy(unhex("0020"), oneDigest, onePCR, []byte{1}), []string{"1 octets too many"}},
		"draft cut":       {pcrPolicy(unhex("0020"), oneDigest[:3]), []string{"digest", "ends too early"}},
		"no bank":         {pcrPolicy(unhex("00000000"), oneDigest), []string{"no PCR"}},
		"no PCR":          {pcrPolicy(unhex("00000001 000b 03 000000"), oneDigest), []string{"no PCR"}},
		"twice":           {pcrPolicy(unhex("00000002 000b 01 80 000b 01 40"), oneDigest), []string{"sha256 is there twice"}},
		"many banks":      {pcrPolicy(unhex("00000011"), oneDigest), []string{"17 banks"}},
		"long bank":       {pcrPolicy(unhex("00000001 000b 05 8000000000"), oneDigest), []string{"5 octets for a bank"}},
		"cut":             {pcrPolicy(unhex("00000001 000b 03 80")), []string{"ends too early"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := tt.policy.PCRs(32)
			wantError(t, err, ErrFormat, tt.texts...)
		})
	}
	_, err := pcrPolicy(unhex("00000001 4321 03 800000"), oneDigest).PCRs(32)
	wantError(t, err, errUnsupported, "0x4321")
}

func TestAuthorization(t *testing.T) {
	t.Parallel()
	area, _ := eccPublic(t, elliptic.P256(), "0003")
	signature := unhex("0018 000b 0002 0102 0001 03")
	for name, tt := range map[string]struct{ ref, signature []byte }{
		"unsigned": {nil, nil},
		"signed":   {nil, signature},
		"with ref": {[]byte("for ssh"), signature},
		"RSA":      {nil, unhex("0014 000b 0002 0102")},
	} {
		tail := tt.signature
		if tail == nil {
			tail = unhex("0010")
		}
		p := Policy{policyAuthorize, slices.Concat(area.bytes(), size(tt.ref), tail)}
		a, err := p.Authorization()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !bytes.Equal(a.SignerArea, area.bytes()) || a.Signer.Curve != curveP256 || !bytes.Equal(a.Ref, tt.ref) || !bytes.Equal(a.Signature, tt.signature) {
			t.Errorf("%s: %+v", name, a)
		}
		for n := range p.CommandPolicy {
			if _, err := (Policy{policyAuthorize, p.CommandPolicy[:n]}).Authorization(); err == nil {
				t.Errorf("%s: %d octets are enough", name, n)
			}
		}
		_, err = Policy{policyAuthorize, append(p.CommandPolicy, 0)}.Authorization()
		wantError(t, err, ErrFormat, "too many")
	}
	_, err := Policy{PolicyPCR, nil}.Authorization()
	wantError(t, err, ErrFormat, "a PolicyPCR where")
	_, err = Policy{policyAuthorize, slices.Concat(area.bytes(), size(make([]byte, 65)), unhex("0010"))}.Authorization()
	wantError(t, err, ErrFormat, "policyRef", "65 octets")
	_, err = Policy{policyAuthorize, slices.Concat(area.bytes(), size(nil), unhex("0005 000b"))}.Authorization()
	wantError(t, err, errUnsupported, "0x0005")
}

func TestPolicyCommand(t *testing.T) {
	t.Parallel()
	for code, want := range map[uint32]string{
		PolicyPCR: "PolicyPCR", policyAuthorize: "PolicyAuthorize", 0x151: "PolicySecret", 0x7f: "command 0x7f",
	} {
		if got := (Policy{CommandCode: code}).Command(); got != want {
			t.Errorf("%#x is %q, want %q", code, got, want)
		}
	}
}

// userWithAuth is a bit of TPMA_OBJECT.
const userWithAuth Attributes = 1 << 6

func TestUsesAuth(t *testing.T) {
	t.Parallel()
	authValue := []Policy{{CommandCode: PolicyPCR}, {CommandCode: policyAuthValue}}
	for name, tt := range map[string]struct {
		empty      bool
		attributes Attributes
		policy     []Policy
		signed     []AuthPolicy
		want       bool
	}{
		"PIN":              {false, userWithAuth, nil, nil, true},
		"no PIN":           {true, userWithAuth, nil, nil, false},
		"PCR":              {false, 0, authValue[:1], nil, false},
		"PCR and PIN":      {false, 0, authValue, nil, true},
		"empty all along":  {true, 0, authValue, nil, false},
		"PIN or a policy":  {false, userWithAuth, authValue[:1], nil, true},
		"in a signed one":  {false, 0, nil, []AuthPolicy{{}, {Policy: authValue}}, true},
		"in no signed one": {false, 0, nil, []AuthPolicy{{Policy: authValue[:1]}}, false},
	} {
		k := &TPMKey{EmptyAuth: tt.empty, Policy: tt.policy, AuthPolicy: tt.signed, Public: &Public{Attributes: tt.attributes}}
		if got := k.UsesAuth(); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// FuzzPCRs checks that what is read can be written and read back, and that both forms
// mean the same.
func FuzzPCRs(f *testing.F) {
	for _, b := range [][]byte{onePCR, twoBanks, emptyBanks} {
		f.Add(slices.Concat(b, oneDigest), 32)
		f.Add(slices.Concat(unhex("0020"), oneDigest, b), 32)
	}
	f.Add(slices.Concat(onePCR, oneDigest[:20]), 20)
	f.Fuzz(func(t *testing.T, data []byte, size int) {
		if size != 20 && size != 32 && size != 48 && size != 64 {
			return
		}
		r, err := Policy{PolicyPCR, data}.PCRs(size)
		if err != nil {
			if !ours(err) {
				t.Fatal(err)
			}
			return
		}
		if len(r.Digest) != size || len(r.Selections) > maxBanks {
			t.Fatalf("%+v", r)
		}
		for _, again := range []Policy{
			pcrPolicy(r.Selection, r.Digest),
			pcrPolicy([]byte{0, byte(size)}, r.Digest, r.Selection),
		} {
			if got, err := again.PCRs(size); err != nil || !reflect.DeepEqual(got, r) {
				t.Fatalf("%x comes back as %+v: %v", data, got, err)
			}
		}
	})
}

func FuzzAuthorization(f *testing.F) {
	area, _ := eccPublic(f, elliptic.P256(), "0003")
	f.Add(slices.Concat(area.bytes(), size(nil), unhex("0010")))
	f.Add(slices.Concat(area.bytes(), size([]byte("ref")), unhex("0018 000b 0002 0102 0001 03")))
	f.Add(slices.Concat(rsaPublic(2048).bytes(), size(nil), unhex("0014 000b 0001 01")))
	f.Fuzz(func(t *testing.T, data []byte) {
		a, err := Policy{policyAuthorize, data}.Authorization()
		if err != nil {
			if !ours(err) {
				t.Fatal(err)
			}
			return
		}
		tail := a.Signature
		if tail == nil {
			tail = unhex("0010")
		}
		if again := slices.Concat(a.SignerArea, size(a.Ref), tail); !bytes.Equal(again, data) {
			t.Fatalf("%x was read as %x", data, again)
		}
		checkKey(t, a.Signer)
	})
}
