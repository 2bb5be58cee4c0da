package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	sshagent "golang.org/x/crypto/ssh/agent"

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
		print := fingerprintOf(&sshagent.Key{Blob: h.Blob})
		if offers[print] == nil {
			offers[print] = newOffer(h)
		}
		if !listed[print] {
			l.Others = append(l.Others, newListedElse(h, print))
		}
	}
	for i := range l.Keys {
		k := &l.Keys[i]
		if k.Agent = offers[k.Fingerprint]; k.Agent == nil {
			k.Agent = new(offer)
		}
	}
}

func newListedElse(h *agent.Held, print string) listedElse {
	k := listedElse{
		kind: kindOfBlob(h.Blob), Fingerprint: print,
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
