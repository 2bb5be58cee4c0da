package wire

import "fmt"

// Message numbers of RFC 9987, section 10.1, with the names of the RFC without
// SSH_AGENT.
const (
	MsgFailure             = 5
	MsgSuccess             = 6
	MsgRequestIdentities   = 11
	MsgIdentitiesAnswer    = 12
	MsgSignRequest         = 13
	MsgSignResponse        = 14
	MsgAddIdentity         = 17
	MsgRemoveIdentity      = 18
	MsgRemoveAllIdentities = 19
	MsgAddSmartcardKey     = 20
	MsgRemoveSmartcardKey  = 21
	MsgLock                = 22
	MsgUnlock              = 23
	MsgAddIDConstrained    = 25
	MsgAddSmartcardConstr  = 26
	MsgExtension           = 27
	MsgExtensionFailure    = 28
	MsgExtensionResponse   = 29
)

// MaxListed is how many identities OpenSSH's clients accept in a list. They
// reject a longer one as a whole.
const MaxListed = 2048

// Failure returns the frame of SSH_AGENT_FAILURE.
func Failure() []byte { return Frame([]byte{MsgFailure}) }

// Success returns the frame of SSH_AGENT_SUCCESS.
func Success() []byte { return Frame([]byte{MsgSuccess}) }

// RequestName names a request in the log.
func RequestName(number byte) string {
	switch number {
	case MsgRequestIdentities:
		return "list"
	case MsgSignRequest:
		return "sign"
	case MsgRemoveIdentity:
		return "remove"
	case MsgRemoveAllIdentities, 9:
		return "remove all"
	case MsgAddIdentity, MsgAddIDConstrained:
		return "add identity"
	case MsgAddSmartcardKey, MsgAddSmartcardConstr:
		return "add smart card"
	case MsgRemoveSmartcardKey:
		return "remove smart card"
	case MsgLock:
		return "lock"
	case MsgUnlock:
		return "unlock"
	case MsgExtension:
		return "extension"
	}
	return fmt.Sprintf("request %d", number)
}
