package agent

import (
	"context"
	"encoding/binary"
	"strings"
	"time"
)

// Keeper is where the private key of an identity is.
type Keeper byte

// The keepers.
const (
	InDirectory Keeper = iota // a key file that the Source has
	InKeyFile                 // a key file that was added at run time
	InMemory                  // the agent's own memory
	InUpstream                // another agent
)

// Held is an identity that the agent offers, and under which conditions.
type Held struct {
	Blob    []byte // the public key, or a certificate of it
	Comment string
	Name    string // of its key file, or of the upstream agent; "" in memory
	Keeper  Keeper

	// What an upstream asks for only it knows.
	Mortal       bool          // it is removed by itself
	Lifetime     time.Duration // from now, in seconds; if Mortal
	Confirm      bool
	Destinations []string // see Destination.String; none: anywhere

	PIN time.Duration // for how long it is remembered, in seconds; Forever; 0: it is not
}

// HeldRequest asks which identities the agent offers, in the order in which it
// lists them. They may not fit into one answer: next is 0, or what the last
// answer said. It is the request's message, without its length.
func HeldRequest(next int) []byte {
	return binary.BigEndian.AppendUint32(appendString([]byte{msgExtension}, extHeldKeys), uint32(next))
}

// ParseHeld reads the answer to a HeldRequest, without its length. next, if not
// 0, is where to go on.
func ParseHeld(answer []byte) (some []Held, next int, err error) {
	w, err := ownerAnswer(answer, extHeldKeys)
	if err != nil {
		return nil, 0, err
	}
	next = int(int32(w.uint32()))
	for !w.done() {
		h := Held{Blob: w.string(), Comment: string(w.string()), Name: string(w.string()), Keeper: Keeper(w.byte())}
		h.Mortal, h.Lifetime, h.Confirm = w.byte() != 0, seconds(w.uint32()), w.byte() != 0
		h.Destinations, h.PIN = w.texts(), seconds(w.uint32())
		some = append(some, h)
	}
	return some, next, w.end()
}

func (h *Held) marshal() []byte {
	b := appendString(appendString(appendString(nil, string(h.Blob)), h.Comment), h.Name)
	b = append(b, byte(h.Keeper), flag(h.Mortal))
	b = append(binary.BigEndian.AppendUint32(b, inSeconds(h.Lifetime)), flag(h.Confirm))
	var destinations []byte
	for _, d := range h.Destinations {
		destinations = appendString(destinations, d)
	}
	return binary.BigEndian.AppendUint32(appendString(b, string(destinations)), inSeconds(h.PIN))
}

// heldKeys answers with as many as fit. One that never would is left out, as it
// is from lists.
func (a *Agent) heldKeys(ctx context.Context, c *conn, w *wire) ([]byte, error) {
	first := w.uint32()
	if err := w.whole(); err != nil {
		return nil, err
	}
	all := append(a.heldHere(), a.heldUpstream(ctx, c)...)
	b := make([]byte, 4)
	for i := int(min(first, uint32(len(all)))); i < len(all); i++ {
		held := all[i].marshal()
		switch {
		case len(held) > heldSize:
		case len(b)+len(held) > heldSize+4:
			binary.BigEndian.PutUint32(b, uint32(i))
			return b, nil
		default:
			b = append(b, held...)
		}
	}
	return b, nil
}

// heldSize is what an answer has room for behind its name.
const heldSize = maxMessage - 64

// heldHere are the agent's own.
func (a *Agent) heldHere() (all []Held) {
	a.expire()
	a.expirePINs()
	o, wall, now := a.own(), time.Now(), a.clock.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, id := range o.all() {
		if id.expired(wall) {
			continue
		}
		h := Held{Blob: []byte(id.blob), Comment: id.Comment, Name: id.Name, Confirm: a.confirmAll}
		if e := a.added.byBlob[id.blob]; e != nil && e.identity == id {
			h.limit(e, now)
		}
		if p := a.pins[id.line]; p != nil && p.id.Key == id.Key {
			h.PIN = p.left(now)
		}
		all = append(all, h)
	}
	return all
}

// limit notes the conditions of an identity that was added.
func (h *Held) limit(e *entry, now time.Duration) {
	h.Keeper = InKeyFile
	if _, ok := e.Key.(wiper); ok {
		h.Keeper = InMemory
	}
	if h.Mortal = e.mortal; e.mortal {
		h.Lifetime = max(0, e.deadline-now)
	}
	h.Confirm = h.Confirm || e.limits.confirm
	for i := range e.limits.destinations {
		h.Destinations = append(h.Destinations, e.limits.destinations[i].String())
	}
}

// left is for how long p is remembered from now.
func (p *pin) left(now time.Duration) time.Duration {
	if !p.mortal {
		return Forever
	}
	return max(0, p.deadline-now)
}

// heldUpstream are those of other agents, as this client sees them.
func (a *Agent) heldUpstream(ctx context.Context, c *conn) (all []Held) {
	if !a.upstreams.any() {
		return nil
	}
	here := a.own()
	for _, id := range c.relay.list(ctx) {
		if !here.holds(id.blob) {
			all = append(all, Held{Blob: []byte(id.blob), Comment: id.comment, Name: a.upstreams.holder(id.blob), Keeper: InUpstream})
		}
	}
	return all
}

// String is how ssh-add's -h has it: [USER@]HOST, or FROM>[USER@]HOST.
func (d *Destination) String() string {
	var b strings.Builder
	if d.From.Host != "" {
		b.WriteString(d.From.Host + ">")
	}
	if d.To.User != "" {
		b.WriteString(d.To.User + "@")
	}
	return b.String() + d.To.Host
}
