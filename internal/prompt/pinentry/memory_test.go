package pinentry

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Once the caller has wiped a PIN, it is nowhere in this process.
func TestNoCopyOfThePIN(t *testing.T) {
	pin, err := part{Do: "its own PIN", At: "GETPIN"}.getPIN(t)
	if err != nil || len(pin) != 48 {
		t.Fatalf("got %d octets, %v", len(pin), err)
	}
	if n := copies(t); n != 1 {
		t.Errorf("%d copies of the PIN while it is used, want the caller's only", n)
	}
	clear(pin)
	if n := copies(t); n != 0 {
		t.Errorf("%d copies of the PIN after it was wiped", n)
	}
	runtime.KeepAlive(pin)
}

const mask = 0x55

// copies counts the copies of ownPIN in the writable memory of this process.
func copies(t *testing.T) (n int) {
	t.Helper()
	memory, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer memory.Close()
	needle := ownPIN(mask)[8:] // a short answer may have overwritten the beginning
	// It is outside of Go's memory, which must not move while it is searched.
	buf, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(buf)
	for _, area := range writable(t) {
		for at := area[0]; at < area[1]; at += int64(len(buf) - len(needle) + 1) {
			got, _ := memory.ReadAt(buf[:min(int64(len(buf)), area[1]-at)], at)
			n += occurrences(buf[:got], needle)
			clear(buf)
		}
	}
	return n
}

// occurrences counts the masked needle in data.
func occurrences(data, needle []byte) (n int) {
	for i := range len(data) - len(needle) + 1 {
		j := 0
		for j < len(needle) && data[i+j]^mask == needle[j] {
			j++
		}
		if j == len(needle) {
			n++
		}
	}
	return n
}

// writable lists the areas of memory that Go's heap and stacks are in, and all
// others that can be written but for the giant ones of the race detector.
func writable(t *testing.T) (areas [][2]int64) {
	t.Helper()
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil {
			continue
		}
		if strings.HasPrefix(mode, "rw") && to-from <= 256<<20 {
			areas = append(areas, [2]int64{from, to})
		}
	}
	return areas
}
