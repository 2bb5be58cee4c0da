package agent

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/crypto/ssh"
)

// KeyFileRequest asks the agent to offer a key file, which it need not be able
// to read itself: it gets the content.
//
// The extension has the name, the comment and the content of the file as
// strings, the certificates as strings in a string, and constraints to its
// end, in the form of SSH_AGENTC_ADD_ID_CONSTRAINED. It is for processes of
// this machine: it is taken only where a descriptor was passed over the
// connection (unix(7), SCM_RIGHTS), which no forwarding can do.
type KeyFileRequest struct {
	Name         string // the file's, for log and prompts
	Comment      string // as listed
	Content      []byte
	Certificates []*ssh.Certificate
	Lifetime     *uint32 // in seconds; nil: the agent's default
	Confirm      bool
	Destinations []Destination
	PINLife      *time.Duration // in seconds; 0: its PIN is not remembered; Forever; nil: as the agent was told
}

// extAddKeyFile is the name of the extension, in the request and the answer.
const extAddKeyFile = "add-key-file@tpm-agent.github.io"

// Marshal returns the request's message, without its length.
func (k *KeyFileRequest) Marshal() []byte {
	var certificates []byte
	for _, cert := range k.Certificates {
		certificates = appendString(certificates, string(cert.Marshal()))
	}
	b := appendString([]byte{msgExtension}, extAddKeyFile)
	for _, field := range []string{k.Name, k.Comment, string(k.Content), string(certificates)} {
		b = appendString(b, field)
	}
	c := constraints{lifetime: k.Lifetime, confirm: k.Confirm, destinations: k.Destinations}
	if k.PINLife != nil {
		life := inSeconds(*k.PINLife)
		c.pinLife = &life
	}
	return append(b, c.marshal()...)
}

// ErrNoKeyFiles is the answer of an agent that takes no key files, or not over
// this connection.
var ErrNoKeyFiles = errors.New("the agent takes no key files")

// ParseKeyFileAnswer reads the answer to a KeyFileRequest, without its length.
// The error says why the key was not added; it is ErrNoKeyFiles if that is not
// about the key.
func ParseKeyFileAnswer(answer []byte) error {
	if len(answer) == 1 && answer[0] == msgFailure {
		return ErrNoKeyFiles
	}
	w := &wire{rest: answer}
	number, name, problem := w.byte(), w.text(), w.text()
	switch {
	case w.err != nil || number != msgExtensionResponse || name != extAddKeyFile:
		return errors.New("the agent's answer cannot be understood")
	case problem != "":
		return errors.New(problem)
	}
	return nil
}

// addKeyFile answers extAddKeyFile. Who asks is the owner, at his terminal: he
// is told why not.
func (a *Agent) addKeyFile(c *conn, body []byte) []byte {
	answer := appendString([]byte{msgExtensionResponse}, extAddKeyFile)
	ids, limits, err := a.parseKeyFile(body)
	if err != nil {
		a.refuse(c.asker(), "add key file", nil, &refusal{CauseMalformed, err})
		return frame(appendString(answer, err.Error()))
	}
	for _, id := range ids {
		if r := a.addOwn(c, id, limits); r != nil {
			a.refuse(c.asker(), "add key file", id, r)
			return frame(appendString(answer, r.Error()))
		}
	}
	return frame(appendString(answer, ""))
}

// parseKeyFile returns the identities of a request: the key and its
// certificates.
func (a *Agent) parseKeyFile(body []byte) (ids []*identity, limits []byte, err error) {
	w := &wire{rest: body}
	name, comment, content, certificates := w.text(), w.text(), w.string(), w.string()
	if w.err != nil {
		return nil, nil, w.err
	}
	key, err := a.keyFile(name, comment, content)
	if err != nil {
		return nil, nil, err
	}
	ids = append(ids, newIdentity(key))
	for list := (&wire{rest: certificates}); !list.done(); {
		cert, err := parseCertificateOf(key.Public, list.string())
		if err != nil {
			return nil, nil, err
		}
		certified := key
		certified.Public = cert
		ids = append(ids, newIdentity(certified))
	}
	return ids, w.rest, nil
}

// parseCertificateOf reads a certificate, which must be for the key.
func parseCertificateOf(key ssh.PublicKey, blob []byte) (*ssh.Certificate, error) {
	public, err := parseWireKey(blob)
	if err != nil {
		return nil, fmt.Errorf("a certificate: %w", err)
	}
	cert, ok := public.(*ssh.Certificate)
	if !ok || !sameKey(cert.Key, key) {
		return nil, errors.New("a certificate is not for the key")
	}
	return cert, nil
}
