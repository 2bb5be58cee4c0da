package pinentry

import "testing"

// On a machine with GnuPG and a pinentry, that is what is found.
func TestFindHere(t *testing.T) {
	want := program(t, "pinentry")
	got, err := Find([]string{"HOME=" + t.TempDir(), "PATH=/usr/bin:/bin"})
	if err != nil || got != want {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
}
