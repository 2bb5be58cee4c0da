package tpmtest

import (
	"encoding/binary"
	"fmt"
	"io"
	"strings"
)

// headerSize is the size in bytes of the header of a command or an answer: tag
// (2), total size (4), command code or return code (4).
const headerSize = 10

const (
	tagNoSessions = 0x8001

	tpmShutdown      = 0x145
	tpmGetCapability = 0x17a
)

// NewCommand returns a command without authorization.
func NewCommand(code uint32, parameters []byte) []byte {
	return message(code, parameters)
}

// NewAnswer returns an answer that refuses a command: a header.
func NewAnswer(rc uint32) []byte { return message(rc, nil) }

func message(code uint32, body []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, tagNoSessions)
	b = binary.BigEndian.AppendUint32(b, uint32(headerSize+len(body)))
	b = binary.BigEndian.AppendUint32(b, code)
	return append(b, body...)
}

// ReturnCode returns the return code of an answer. If the answer is too short it
// returns all ones, which no TPM uses as a code.
func ReturnCode(answer []byte) uint32 {
	if len(answer) < headerSize {
		return ^uint32(0)
	}
	return code(answer)
}

func code(b []byte) uint32 {
	if len(b) < headerSize {
		return 0
	}
	return binary.BigEndian.Uint32(b[6:])
}

// exchange sends a command to swtpm and reads its answer. It trusts the sizes in
// the answer.
func exchange(c io.ReadWriter, command []byte) ([]byte, error) {
	if _, err := c.Write(command); err != nil {
		return nil, err
	}
	answer := make([]byte, headerSize)
	if _, err := io.ReadFull(c, answer); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(answer[2:])
	if size < headerSize || size > 4096 {
		return nil, fmt.Errorf("answer of %d octets", size)
	}
	answer = append(answer, make([]byte, size-headerSize)...)
	_, err := io.ReadFull(c, answer[headerSize:])
	return answer, err
}

// CommandName returns the name of a command code as in TPM 2.0 Part 2, 6.5.2,
// without the TPM_CC_ prefix, or the number.
func CommandName(code uint32) string {
	if i := int64(code) - firstCommand; i >= 0 && i < int64(len(commandNames)) && commandNames[i] != "" {
		return commandNames[i]
	}
	return fmt.Sprintf("%#x", code)
}

// commandCode is the inverse of CommandName for the names of the table.
func commandCode(name string) (uint32, bool) {
	for i, n := range commandNames {
		if n != "" && strings.EqualFold(n, name) {
			return uint32(firstCommand + i), true
		}
	}
	return 0, false
}

// firstCommand is the code of the first entry in commandNames.
const firstCommand = 0x11f

// commandNames has the names of the command codes from 0x11f on, without gaps. A
// code that is not assigned has an empty name.
var commandNames = [...]string{
	"NV_UndefineSpaceSpecial", "EvictControl", "HierarchyControl", "NV_UndefineSpace", "", // 11f
	"ChangeEPS", "ChangePPS", "Clear", "ClearControl", "ClockSet", "HierarchyChangeAuth", // 124
	"NV_DefineSpace", "PCR_Allocate", "PCR_SetAuthPolicy", "PP_Commands", "SetPrimaryPolicy", // 12a
	"FieldUpgradeStart", "ClockRateAdjust", "CreatePrimary", "NV_GlobalWriteLock", // 12f
	"GetCommandAuditDigest", "NV_Increment", "NV_SetBits", "NV_Extend", "NV_Write", // 133
	"NV_WriteLock", "DictionaryAttackLockReset", "DictionaryAttackParameters", "NV_ChangeAuth", // 138
	"PCR_Event", "PCR_Reset", "SequenceComplete", "SetAlgorithmSet", "SetCommandCodeAuditStatus", // 13c
	"FieldUpgradeData", "IncrementalSelfTest", "SelfTest", "Startup", "Shutdown", "StirRandom", // 141
	"ActivateCredential", "Certify", "PolicyNV", "CertifyCreation", "Duplicate", "GetTime", // 147
	"GetSessionAuditDigest", "NV_Read", "NV_ReadLock", "ObjectChangeAuth", "PolicySecret", // 14d
	"Rewrap", "Create", "ECDH_ZGen", "HMAC", "Import", "Load", "Quote", "RSA_Decrypt", "", // 152
	"HMAC_Start", "SequenceUpdate", "Sign", "Unseal", "", "PolicySigned", "ContextLoad", // 15b
	"ContextSave", "ECDH_KeyGen", "EncryptDecrypt", "FlushContext", "", "LoadExternal", // 162
	"MakeCredential", "NV_ReadPublic", "PolicyAuthorize", "PolicyAuthValue", // 168
	"PolicyCommandCode", "PolicyCounterTimer", "PolicyCpHash", "PolicyLocality", // 16c
	"PolicyNameHash", "PolicyOR", "PolicyTicket", "ReadPublic", "RSA_Encrypt", "", // 170
	"StartAuthSession", "VerifySignature", "ECC_Parameters", "FirmwareRead", "GetCapability", // 176
	"GetRandom", "GetTestResult", "Hash", "PCR_Read", "PolicyPCR", "PolicyRestart", // 17b
	"ReadClock", "PCR_Extend", "PCR_SetAuthValue", "NV_Certify", "EventSequenceComplete", // 181
	"HashSequenceStart", "PolicyPhysicalPresence", "PolicyDuplicationSelect", "PolicyGetDigest", // 186
	"TestParms", "Commit", "PolicyPassword", "ZGen_2Phase", "EC_Ephemeral", "PolicyNvWritten", // 18a
	"PolicyTemplate", "CreateLoaded", "PolicyAuthorizeNV", "EncryptDecrypt2", "AC_GetCapability", // 190
	"AC_Send", "Policy_AC_SendSelect", "CertifyX509", "ACT_SetTimeout", // 195
}
