// Package randomart draws the picture that ssh-keygen shows beside a new key
// ("The key's randomart image is:"), so that a key made in a TPM can be
// compared at a glance with what `ssh-keygen -lv` shows for it elsewhere.
//
// A bishop starts in the middle of a board and moves diagonally, two bits of
// the fingerprint for each move; a square shows how often it was visited
// (D. Loss, T. Limmer, A. von Gernler: "The drunken bishop", 2009).
package randomart

import "strings"

// The board's size in squares, and the symbols for 0, 1, 2 … visits; the last
// two mark where the walk begins and where it ends.
const (
	width   = 17
	height  = 9
	symbols = " .o+=*BOX@%&#/^SE"

	mostVisits = len(symbols) - 3
	start      = len(symbols) - 2
	end        = len(symbols) - 1
)

// SHA256 draws digest, the raw SHA-256 fingerprint of a public key. The kind of
// key ("ECDSA 256") stands in the upper border, shortened to its first word
// when it does not fit. The picture has eleven lines and no newline at its end.
func SHA256(kind string, digest [32]byte) string {
	board := walk(digest[:])
	var b strings.Builder
	b.WriteString(border(title(kind)))
	for y := range height {
		b.WriteString("\n|")
		for x := range width {
			b.WriteByte(symbols[board[y][x]])
		}
		b.WriteByte('|')
	}
	b.WriteByte('\n')
	b.WriteString(border("[SHA256]"))
	return b.String()
}

// walk moves the bishop over the board. It cannot leave: at an edge it slides
// along it.
func walk(digest []byte) (board [height][width]int) {
	x, y := width/2, height/2
	for _, octet := range digest {
		for range 4 {
			x = step(x, octet&1 != 0, width)
			y = step(y, octet&2 != 0, height)
			octet >>= 2
			if board[y][x] < mostVisits {
				board[y][x]++
			}
		}
	}
	board[height/2][width/2] = start
	board[y][x] = end
	return board
}

// step moves one square up or down an axis of the given size.
func step(at int, forward bool, size int) int {
	if forward {
		return min(at+1, size-1)
	}
	return max(at-1, 0)
}

// title is what stands in the upper border. OpenSSH gives it 16 characters and
// leaves the size out when there are more.
func title(kind string) string {
	if len(kind)+2 >= width {
		kind, _, _ = strings.Cut(kind, " ")
	}
	return "[" + kind + "]"
}

// border centres text in a horizontal edge; an odd rest goes to the right.
func border(text string) string {
	if len(text) > width {
		text = text[:width]
	}
	left := (width - len(text)) / 2
	return "+" + strings.Repeat("-", left) + text + strings.Repeat("-", width-left-len(text)) + "+"
}
