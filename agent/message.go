package agent

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/crypto/ssh"
)

// Message numbers, RFC 9987, section 10.1; the names are those of the RFC
// without their SSH_AGENT prefixes.
const (
	msgFailure             = 5
	msgSuccess             = 6
	msgRemoveAllRSA1       = 9 // SSH 1; ssh-add -D still sends it behind a 19
	msgRequestIdentities   = 11
	msgIdentitiesAnswer    = 12
	msgSignRequest         = 13
	msgSignResponse        = 14
	msgAddIdentity         = 17
	msgRemoveIdentity      = 18
	msgRemoveAllIdentities = 19
	msgAddSmartcardKey     = 20
	msgRemoveSmartcardKey  = 21
	msgLock                = 22
	msgUnlock              = 23
	msgAddIDConstrained    = 25
	msgAddSmartcardConstr  = 26
	msgExtension           = 27
	msgExtensionFailure    = 28
	msgExtensionResponse   = 29
)

// requestName names a request in the log.
func requestName(number byte) string {
	switch number {
	case msgRequestIdentities:
		return "list"
	case msgSignRequest:
		return "sign"
	case msgRemoveIdentity:
		return "remove"
	case msgRemoveAllIdentities, msgRemoveAllRSA1:
		return "remove all"
	case msgAddIdentity, msgAddIDConstrained:
		return "add identity"
	case msgAddSmartcardKey, msgAddSmartcardConstr:
		return "add smart card"
	case msgRemoveSmartcardKey:
		return "remove smart card"
	case msgLock:
		return "lock"
	case msgUnlock:
		return "unlock"
	case msgExtension:
		return "extension"
	}
	return fmt.Sprintf("request %d", number)
}

// Flags of a sign request, RFC 9987, section 5.6.1.
const (
	flagRSASHA256 = 2
	flagRSASHA512 = 4
)

// What ends in Rest may have more behind it than the RFC knows, and OpenSSH
// looks no further either.

type signRequest struct {
	Blob  []byte `sshtype:"13"`
	Data  []byte
	Flags uint32
	Rest  []byte `ssh:"rest"`
}

type removeRequest struct {
	Blob []byte `sshtype:"18"`
	Rest []byte `ssh:"rest"`
}

type signResponse struct {
	Signature []byte `sshtype:"14"`
}

// An answer is a whole frame, its length in front, so that it can be cached
// and leaves in one write.

// lengthSize is the size of the length in front of each message, which does
// not count itself.
const lengthSize = 4

func frame(message []byte) []byte {
	f := make([]byte, 0, lengthSize+len(message))
	f = binary.BigEndian.AppendUint32(f, uint32(len(message)))
	return append(f, message...)
}

func failure() []byte { return frame([]byte{msgFailure}) }

func success() []byte { return frame([]byte{msgSuccess}) }

func extensionFailure() []byte { return frame([]byte{msgExtensionFailure}) }

// isSuccess judges an upstream's answer.
func isSuccess(answer []byte) bool { return bytes.Equal(answer, success()) }

func signed(s *ssh.Signature) []byte {
	return frame(ssh.Marshal(signResponse{ssh.Marshal(s)}))
}
