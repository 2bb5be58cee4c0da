package knownhosts

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"errors"
	"strings"
)

// errHash is a name that begins as a hashed one and is none.
var errHash = errors.New("malformed hashed host name")

// matches says whether the names of a line are for host: patterns with commas
// between them, or one hash. A host name has no case, and the files have it in
// lower case.
func matches(host, names string) (bool, error) {
	host = strings.ToLower(host)
	if strings.HasPrefix(names, "|") {
		return matchesHash(host, names)
	}
	return matchesList(host, strings.ToLower(names)), nil
}

// matchesHash compares with |1|salt|hash: HMAC-SHA1 of the name, which keeps
// nobody from guessing.
func matchesHash(host, name string) (bool, error) {
	parts := strings.Split(name, "|")
	if len(parts) != 4 || parts[1] != "1" {
		return false, errHash
	}
	salt, err := base64.StdEncoding.DecodeString(parts[2])
	if err != nil || len(salt) != sha1.Size {
		return false, errHash
	}
	want, err := base64.StdEncoding.DecodeString(parts[3])
	if err != nil {
		return false, errHash
	}
	mac := hmac.New(sha1.New, salt)
	mac.Write([]byte(host))
	return hmac.Equal(mac.Sum(nil), want), nil
}

// matchesList: one pattern has to match, and none that is negated.
func matchesList(host, patterns string) (found bool) {
	for pattern := range strings.SplitSeq(patterns, ",") {
		pattern, negated := strings.CutPrefix(pattern, "!")
		switch {
		case !matchesPattern(host, pattern):
		case negated:
			return false
		default:
			found = true
		}
	}
	return found
}

// matchesPattern knows * for any characters and ? for one. It goes back to the
// last * only, so its time is at most the product of the lengths.
func matchesPattern(s, pattern string) bool {
	star, mark := -1, 0 // the place behind the last *, and what it has eaten up to
	i, p := 0, 0
	for i < len(s) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			p++
			star, mark = p, i
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == s[i]):
			i, p = i+1, p+1
		case star >= 0:
			mark++
			i, p = mark, star
		default:
			return false
		}
	}
	return strings.Trim(pattern[p:], "*") == ""
}
