package tcti

import (
	"strings"
	"testing"
)

// accepted maps addresses to the result of String.
var accepted = map[string]string{
	"auto":                            "auto",
	"software":                        "software",
	"device:/dev/tpm0":                "device:/dev/tpm0",
	"device:/dev/with:colon,comma=":   "device:/dev/with:colon,comma=",
	"swtpm:path=/run/x.sock":          "swtpm:path=/run/x.sock",
	"swtpm:path=/run/a=b":             "swtpm:path=/run/a=b",
	"swtpm:host=127.0.0.1,port=2321":  "swtpm:host=127.0.0.1,port=2321",
	"swtpm:port=02321,host=localhost": "swtpm:host=localhost,port=2321",
	"swtpm:host=::1,port=1":           "swtpm:host=::1,port=1",
	"swtpm:host=[::1],port=65535":     "swtpm:host=::1,port=65535",
	"mssim:host=fe80::1%lo,port=2321": "mssim:host=fe80::1%lo,port=2321",
}

// refused maps addresses to a part of the error.
var refused = map[string]string{
	"":                                   "no kind",
	":":                                  "no kind",
	"AUTO":                               `"AUTO"`,
	"auto:":                              "auto takes no arguments",
	"software:dir=/x":                    "software takes no arguments",
	"device":                             "path",
	"device:":                            "path",
	"/dev/tpmrm0":                        `"/dev/tpmrm0"`,
	"tabrmd:":                            `"tabrmd"`,
	"swtpm":                              "KEY=VALUE",
	"swtpm:":                             "KEY=VALUE",
	"swtpm:/run/x.sock":                  "KEY=VALUE",
	"swtpm:path=":                        "KEY=VALUE",
	"swtpm:path=/a,port=1":               "path excludes",
	"swtpm:path=/a,path=/b":              "path is given twice",
	"swtpm:path=/a,b":                    `"b"`,
	"swtpm:host=h":                       "both",
	"swtpm:port=1":                       "both",
	"swtpm:host=h,port=1,":               "KEY=VALUE",
	"swtpm:host=h,port=1,port=1":         "port is given twice",
	"swtpm:host=h,port=0":                `"0"`,
	"swtpm:host=h,port=65536":            `"65536"`,
	"swtpm:host=h,port=-1":               `"-1"`,
	"swtpm:host=h,port=+1":               `"+1"`,
	"swtpm:host=h,port=1,locality=3":     `"locality"`,
	"swtpm:host=[::1,port=1":             "brackets",
	"swtpm:host=[name],port=1":           "brackets",
	"swtpm:host=a]b,port=1":              "a]b",
	"mssim:path=/run/x.sock":             `"path"`,
	"mssim:host=h,port=65535":            "platform port",
	" auto":                              `" auto"`,
	"swtpm:path=/a\x00":                  "NUL",
	"swtpm:host=h,port=1,tpm=x,device=y": `"tpm"`,
}

func TestParse(t *testing.T) {
	t.Parallel()
	for in, want := range accepted {
		a, err := Parse(in)
		if err != nil || a.String() != want {
			t.Errorf("%q: %q, %v; want %q", in, a, err, want)
		}
		chip := strings.HasPrefix(want, "auto") || strings.HasPrefix(want, "device")
		if a.Software() == chip {
			t.Errorf("%q: Software() is %v", in, a.Software())
		}
	}
	for in, want := range refused {
		a, err := Parse(in)
		switch {
		case err == nil:
			t.Errorf("%q is accepted as %v", in, a)
		case !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), forms):
			t.Errorf("%q: %v; want it to say %s, and the forms", in, err, want)
		}
	}
	if zero := (Address{}).String(); zero != "auto" {
		t.Errorf("the zero Address is %q", zero)
	}
}

func FuzzParse(f *testing.F) {
	for in := range accepted {
		f.Add(in)
	}
	for in := range refused {
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in string) {
		a, err := Parse(in)
		if err != nil {
			if a != (Address{}) {
				t.Errorf("%q: an address besides the error %v", in, err)
			}
			return
		}
		again, err := Parse(a.String())
		if err != nil || again != a {
			t.Errorf("%q: is %q, which is %v, %v", in, a.String(), again, err)
		}
	})
}

func TestAbs(t *testing.T) {
	t.Chdir("/tmp")
	for s, want := range map[string]string{
		"device:tpm0": "device:/tmp/tpm0", "swtpm:path=a/../x.sock": "swtpm:path=/tmp/x.sock",
		"device:/dev/tpm0": "device:/dev/tpm0", "auto": "auto", "software": "software",
		"swtpm:host=h,port=1": "swtpm:host=h,port=1", "mssim:host=::1,port=1": "mssim:host=::1,port=1",
	} {
		a, err := Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := a.Abs(); err != nil || got.String() != want {
			t.Errorf("%s becomes %v, %v, want %s", s, got, err, want)
		}
	}
}
