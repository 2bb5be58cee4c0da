// Package randomart draws the picture of a key that ssh-keygen shows ("The
// key's randomart image is:"), so that you can compare a key made in a TPM at a
// glance with what `ssh-keygen -lv` shows elsewhere.
//
// A bishop starts in the middle of a board and moves diagonally, once for two
// bits of the fingerprint. A square shows how often it was visited
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

// SHA256 draws digest, the raw SHA-256 fingerprint of a public key, with the
// kind of key ("ECDSA 256") in the upper border. If that does not fit, only its
// first word is used. The last of the eleven lines has no newline.
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

// walk moves the bishop over the board. At an edge it slides along.
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

// title returns the text for the upper border. Like OpenSSH it leaves out the
// size if there is no room.
func title(kind string) string {
	if len(kind)+2 >= width {
		kind, _, _ = strings.Cut(kind, " ")
	}
	return "[" + kind + "]"
}

// border centres text in a horizontal edge, or one column left of that.
func border(text string) string {
	if len(text) > width {
		text = text[:width]
	}
	left := (width - len(text)) / 2
	return "+" + strings.Repeat("-", left) + text + strings.Repeat("-", width-left-len(text)) + "+"
}
