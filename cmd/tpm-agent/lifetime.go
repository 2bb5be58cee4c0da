package main

import (
	"fmt"
	"math"
	"time"
)

// parseLifetime reads a time as OpenSSH writes it (sshd_config(5), TIME
// FORMATS): whole numbers, each with one of the units s, m, h, d and w, in
// either case; one without a unit counts seconds. 0 is for ever. The longest is
// what a lifetime constraint can say: 2^32-1 seconds (RFC 9987, section 5.2.7.1).
func parseLifetime(s string) (time.Duration, error) {
	bad := func(why string) (time.Duration, error) {
		return 0, fmt.Errorf("%q is not a time: %s", plain(s), why)
	}
	if s == "" {
		return bad("it is empty")
	}
	var total uint64
	seconds := false // were given already
	for rest := s; rest != ""; {
		n, unit, after, ok := cutTime(rest)
		switch {
		case !ok:
			return bad("write it as 90, 10m, 1h30m or 2w")
		case n > math.MaxUint32 || total+n*unit > math.MaxUint32:
			return bad("the longest is 4294967295 seconds, which is 136 years")
		case unit == 1 && seconds:
			return bad("it has seconds twice")
		}
		total += n * unit
		seconds = seconds || unit == 1
		rest = after
	}
	return time.Duration(total) * time.Second, nil
}

// cutTime takes the first number with its unit, in seconds, off s. A number
// that is too large for a lifetime comes out as one that is too large.
func cutTime(s string) (n, unit uint64, rest string, ok bool) {
	i := 0
	for ; i < len(s) && '0' <= s[i] && s[i] <= '9'; i++ {
		n = min(n*10+uint64(s[i]-'0'), math.MaxUint32+1)
	}
	if i == 0 {
		return 0, 0, "", false
	}
	if i == len(s) {
		return n, 1, "", true
	}
	switch s[i] | 0x20 { // lower case
	case 's':
		unit = 1
	case 'm':
		unit = 60
	case 'h':
		unit = 60 * 60
	case 'd':
		unit = 24 * 60 * 60
	case 'w':
		unit = 7 * 24 * 60 * 60
	}
	return n, unit, s[i+1:], unit != 0
}
