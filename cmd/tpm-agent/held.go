package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/tpm-agent/tpm-agent/agent"
)

// agentInfo is the agent that list has asked, and why it got no answer.
type agentInfo struct {
	Socket  string `json:"socket"`
	Problem string `json:"problem,omitempty"`
}

// offer is what an agent says of a key.
type offer struct {
	Offered       bool     `json:"offered"`
	Lifetime      *int     `json:"lifetime,omitempty"` // until it is removed, in seconds
	Confirm       bool     `json:"confirm"`
	Destinations  []string `json:"destinations,omitempty"`
	PINRemembered bool     `json:"pin_remembered"`
	PINLifetime   *int     `json:"pin_lifetime,omitempty"` // until it is forgotten, in seconds
}

func newOffer(h *agent.Held) *offer {
	o := &offer{Offered: true, Confirm: h.Confirm, PINRemembered: h.PIN != 0}
	if h.Mortal {
		o.Lifetime = inSeconds(h.Lifetime)
	}
	for _, d := range h.Destinations {
		o.Destinations = append(o.Destinations, plain(d))
	}
	if o.PINRemembered && h.PIN != agent.Forever {
		o.PINLifetime = inSeconds(h.PIN)
	}
	return o
}

// inSeconds is a time for JSON.
func inSeconds(d time.Duration) *int {
	n := int(d / time.Second)
	return &n
}

// words are for the table.
func (o *offer) words() string {
	switch {
	case o == nil:
		return "-"
	case !o.Offered:
		return "not offered"
	}
	words := []string{"offered"}
	if o.Lifetime != nil {
		words = append(words, "for "+duration(time.Duration(*o.Lifetime)*time.Second))
	}
	if o.Confirm {
		words = append(words, "confirm")
	}
	switch n := len(o.Destinations); {
	case n > 3:
		words = append(words, fmt.Sprintf("to %d destinations", n))
	case n > 0:
		words = append(words, "to "+strings.Join(o.Destinations, " "))
	}
	switch {
	case o.PINLifetime != nil:
		words = append(words, "PIN remembered for "+duration(time.Duration(*o.PINLifetime)*time.Second))
	case o.PINRemembered:
		words = append(words, "PIN remembered")
	}
	return strings.Join(words, ", ")
}

// listedElse is a key that the agent offers and that is in none of the
// directories listed.
type listedElse struct {
	kind
	Fingerprint string `json:"fingerprint"`
	Comment     string `json:"comment"`
	Place       string `json:"place"`              // file, memory, or upstream
	File        string `json:"file,omitempty"`     // of a key file
	Upstream    string `json:"upstream,omitempty"` // the agent that has it
	Agent       *offer `json:"agent"`
}

// row is for the table. A key in memory is known by its comment.
func (k *listedElse) row() []string {
	name, where, bits := k.Comment, "in memory", "-"
	switch k.Place {
	case "file":
		name, where = keyName(filepath.Base(k.File)), k.File
	case "upstream":
		where = "upstream " + k.Upstream
	}
	if name == "" {
		name = "-"
	}
	if k.Bits > 0 {
		bits = strconv.Itoa(k.Bits)
	}
	return []string{name, k.Type, bits, k.Fingerprint, "-", "-", k.Agent.words(), where}
}

// askAgent asks the agent that runs what it offers. Without one the listing is
// that of the files; but one that was named by the user must be there.
func (l *listing) askAgent(ctx context.Context, sys system, asked string) error {
	path, err := sys.agentSocket(asked)
	if err != nil {
		return nil // there is no place for one, and none was named
	}
	l.Agent = &agentInfo{Socket: plain(path)}
	held, err := askHeld(ctx, sys, asked)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil && asked != "":
		return err
	case err != nil:
		l.Agent.Problem = oneLine(err.Error())
		return nil
	}
	l.merge(held)
	return nil
}

// heldPatience is how long an agent may take for a page of its answer, the
// time that it gives its upstream agents included.
const heldPatience = 10 * time.Second

func askHeld(ctx context.Context, sys system, asked string) (held []agent.Held, err error) {
	c, err := dialAgent(ctx, sys, asked)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	for next := 0; ; {
		if ctx.Err() == nil {
			c.SetDeadline(time.Now().Add(heldPatience))
		}
		answer, err := c.exchange(ctx, agent.HeldRequest(next))
		if err != nil {
			return nil, err
		}
		some, more, err := agent.ParseHeld(answer)
		switch {
		case errors.Is(err, agent.ErrNotOwner):
			return nil, withHint(fmt.Errorf("the agent at %s does not say what it offers, or not over this connection", plain(c.path)), "%s", notOwnerHint)
		case err != nil:
			return nil, c.failed(ctx, err)
		}
		held = append(held, some...)
		if more <= next {
			return held, nil
		}
		next = more
	}
}

// merge puts what the agent says to the keys that it says it of. The first of
// a key and its certificates counts.
func (l *listing) merge(held []agent.Held) {
	offers := make(map[string]*offer)
	l.Others = []listedElse{}
	listed := make(map[string]bool)
	for _, k := range l.Keys {
		listed[k.Fingerprint] = true
	}
	for i := range held {
		h := &held[i]
		line, public := certifiedKey(h.Blob)
		print := fingerprint(line)
		if offers[print] == nil {
			offers[print] = newOffer(h)
		}
		if !listed[print] {
			l.Others = append(l.Others, newListedElse(h, print, public))
		}
	}
	for i := range l.Keys {
		k := &l.Keys[i]
		if k.Agent = offers[k.Fingerprint]; k.Agent == nil {
			k.Agent = new(offer)
		}
	}
}

func newListedElse(h *agent.Held, print string, public ssh.PublicKey) listedElse {
	k := listedElse{
		kind: kindOfBlob(h.Blob, public), Fingerprint: print,
		Comment: plain(h.Comment), Place: "file", Agent: newOffer(h),
	}
	switch h.Keeper {
	case agent.InMemory:
		k.Place = "memory"
	case agent.InUpstream:
		k.Place, k.Upstream = "upstream", plain(h.Name)
	default:
		k.File = plain(h.Name)
	}
	return k
}

// certifiedKey is the blob of a key, or of the one that a certificate is for.
// public is nil if the kind of key is not known here.
func certifiedKey(blob []byte) (line []byte, public ssh.PublicKey) {
	public, err := ssh.ParsePublicKey(blob)
	if err != nil {
		return blob, nil
	}
	if cert, ok := public.(*ssh.Certificate); ok {
		return cert.Key.Marshal(), cert.Key
	}
	return blob, public
}

func fingerprint(blob []byte) string {
	sum := sha256.Sum256(blob)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(sum[:])
}

// kindOfBlob is the kind of a key that need not be of a TPM, in the words of
// ssh-keygen -t; one that is not known has the name that SSH gives it.
func kindOfBlob(blob []byte, public ssh.PublicKey) (k kind) {
	name := blobType(blob)
	k.Type = plain(name)
	for word, prefix := range map[string]string{
		"ed25519": "ssh-ed25519", "ecdsa": "ecdsa-sha2-", "rsa": "ssh-rsa", "dsa": "ssh-dss",
		"ed25519-sk": "sk-ssh-ed25519", "ecdsa-sk": "sk-ecdsa-sha2-",
	} {
		if strings.HasPrefix(name, prefix) {
			k.Type = word
		}
	}
	if strings.Contains(name, "-cert-v") {
		k.Type += "-cert"
	}
	if p, ok := public.(ssh.CryptoPublicKey); ok {
		switch key := p.CryptoPublicKey().(type) {
		case *rsa.PublicKey:
			k.Bits = key.N.BitLen()
		case *ecdsa.PublicKey:
			k.Bits = key.Curve.Params().BitSize
		case ed25519.PublicKey:
			k.Bits = 8 * len(key)
		}
	}
	return k
}

// blobType is the name with which a public key begins.
func blobType(blob []byte) string {
	if len(blob) < 4 {
		return ""
	}
	n, rest := binary.BigEndian.Uint32(blob), blob[4:]
	if uint64(n) > uint64(len(rest)) {
		return ""
	}
	return string(bytes.Clone(rest[:n]))
}
