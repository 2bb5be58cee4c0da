#!/bin/sh
# Makes the golden files beside this script with the tools that others use:
# tpm2-tools and OpenSSL's tpm2 provider against a private swtpm (Debian:
# swtpm, tpm2-tools, tpm2-openssl, xxd). Every run makes other keys. NAME.name has
# the TPM's own Name of the object in NAME.tpm, and NAME.der the public key as
# the TPM's tools see it.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
dir=$(mktemp -d)
cd "$dir"
mkdir state
swtpm socket --tpm2 --tpmstate dir=state --flags not-need-init,startup-clear \
	--server type=unixio,path=tpm.sock --ctrl type=unixio,path=tpm.sock.ctrl &
pid=$!
trap 'kill $pid; rm -rf "$dir"' EXIT
while ! [ -S tpm.sock ]; do :; done
export TPM2TOOLS_TCTI=swtpm:path=$dir/tpm.sock
export TPM2OPENSSL_TCTI=$TPM2TOOLS_TCTI

# flush empties the TPM: it has no resource manager.
flush() {
	tpm2_flushcontext -t
	tpm2_flushcontext -l
	tpm2_flushcontext -s
}

srk='fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt'
tpm2_createprimary -Q -C o -G ecc -a "$srk" -c parent.ctx
tpm2_createprimary -Q -C o -G ecc -a "$srk" -c srk.ctx
tpm2_evictcontrol -Q -C o -c srk.ctx 0x81000001
flush

# tools NAME ALG [PIN]: tpm2_create under the owner's primary. This version's
# tpm2_encodeobject writes emptyAuth inverted; the files are as it wrote them.
tools() {
	if [ $# = 3 ]; then
		tpm2_create -Q -C parent.ctx -G "$2" -u k.pub -r k.priv -p "$3"
		tpm2_encodeobject -Q -C parent.ctx -u k.pub -r k.priv -o "$here/$1.tpm" -p
	else
		tpm2_create -Q -C parent.ctx -G "$2" -u k.pub -r k.priv
		tpm2_encodeobject -Q -C parent.ctx -u k.pub -r k.priv -o "$here/$1.tpm"
	fi
	flush
	record "$1" parent.ctx
}

# record NAME PARENT: what the TPM says about k.pub.
record() {
	tpm2_load -Q -C "$2" -u k.pub -r k.priv -c k.ctx -n k.name
	tpm2_readpublic -Q -c k.ctx -f der -o "$here/$1.der"
	xxd -p -c 100 k.name > "$here/$1.name"
	flush
}

tools tools-p256 ecc256:ecdsa
tools tools-p384-pin ecc384:ecdsa-sha384 secret
tools tools-rsa2048 rsa2048

provider() {
	out=$1; shift
	openssl genpkey -provider tpm2 -provider default "$@" -out "$here/$out.tpm"
	openssl pkey -provider tpm2 -provider default -in "$here/$out.tpm" \
		-passin pass:secret -pubout -outform DER -out "$here/$out.der"
}
provider openssl-p256 -algorithm EC -pkeyopt group:P-256
provider openssl-p256-pin -algorithm EC -pkeyopt group:P-256 -pkeyopt user-auth:secret
provider openssl-p384 -algorithm EC -pkeyopt group:P-384
provider openssl-rsa2048 -algorithm RSA -pkeyopt bits:2048
provider openssl-rsa2048-pin -algorithm RSA -pkeyopt bits:2048 -pkeyopt user-auth:secret
provider openssl-p256-persistent -algorithm EC -pkeyopt group:P-256 -pkeyopt parent:0x81000001

# Sealed data, and an HMAC key, which tpm2_encodeobject calls loadable.
printf 'the secret of nobody' > data
tpm2_create -Q -C parent.ctx -i data -u k.pub -r k.priv
tpm2_encodeobject -Q -C parent.ctx -u k.pub -r k.priv -o "$here/tools-sealed-object.tpm"
flush
tpm2_create -Q -C parent.ctx -G hmac -u k.pub -r k.priv
tpm2_encodeobject -Q -C parent.ctx -u k.pub -r k.priv -o "$here/tools-hmac.tpm"
flush

# The parts of an importable key, by TPM2_Duplicate: dup.pub, .priv, .seed.
tpm2_readpublic -Q -c parent.ctx -o parent.pub
flush
tpm2_startauthsession -S s.ctx
tpm2_policycommandcode -Q -S s.ctx -L dup.policy TPM2_CC_Duplicate
flush
tpm2_createprimary -Q -C n -G ecc -c other.ctx
tpm2_create -Q -C other.ctx -G ecc256:ecdsa -L dup.policy -u dup.pub -r k.priv \
	-a 'sensitivedataorigin|userwithauth|sign'
flush
tpm2_load -Q -C other.ctx -u dup.pub -r k.priv -c k.ctx -n k.name
flush
tpm2_loadexternal -Q -C o -u parent.pub -c new.ctx
tpm2_startauthsession --policy-session -S s.ctx
tpm2_policycommandcode -Q -S s.ctx TPM2_CC_Duplicate
tpm2_duplicate -Q -C new.ctx -c k.ctx -G null -p session:s.ctx -r dup.priv -s dup.seed
flush
tpm2_import -Q -C parent.ctx -u dup.pub -i dup.priv -s dup.seed -r k.priv
cp dup.pub k.pub
flush
record importable parent.ctx

# tlv TAG CONTENT: one element of DER, in hexadecimal digits.
tlv() {
	n=$((${#2} / 2))
	if [ $n -lt 128 ]; then printf '%s%02x%s' "$1" $n "$2"
	elif [ $n -lt 256 ]; then printf '%s81%02x%s' "$1" $n "$2"
	else printf '%s82%04x%s' "$1" $n "$2"; fi
}
hex() { xxd -p -c 10000 "$1"; }
pem() {
	echo '-----BEGIN TSS2 PRIVATE KEY-----'
	printf %s "$1" | xxd -r -p | base64 -w 64
	echo '-----END TSS2 PRIVATE KEY-----'
}
owner=$(tlv 02 40000001)
pem "$(tlv 30 "06066781050a0104$(tlv a0 0101ff)$(tlv a2 "$(tlv 04 "$(hex dup.seed)")")$owner$(tlv 04 "$(hex dup.pub)")$(tlv 04 "$(hex dup.priv)")")" \
	> "$here/importable.tpm"
tpm2_create -Q -C parent.ctx -i data -u k.pub -r k.priv
pem "$(tlv 30 "06066781050a0105$(tlv a0 0101ff)$owner$(tlv 04 "$(hex k.pub)")$(tlv 04 "$(hex k.priv)")")" \
	> "$here/sealed.tpm"

chmod 644 "$here"/*.tpm "$here"/*.der "$here"/*.name
