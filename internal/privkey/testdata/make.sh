#!/bin/sh
# Makes the files beside this script with ssh-keygen, openssl and puttygen (Debian
# packages openssh-client, openssl and putty-tools). Every run makes new keys.
# Do not use them for anything else.
#
# NAME.pub holds the public key, and NAME-FORMAT the same key in a format. Parse
# refuses the files refused-*. The passphrase is below; it takes little work,
# because fuzzing decrypts the files again and again.
set -eu
pass='correct horse'
cd "$(dirname "$0")"
rm -f p256* p384* p521* rsa* refused-*
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT

# openssh NAME: NAME-openssh, its .pub, and the formats that ssh-keygen converts it to.
openssh() {
	mv "$tmp/$1" "$1-openssh"
	mv "$tmp/$1.pub" "$1.pub"
	for format in PEM PKCS8; do
		cp "$1-openssh" "$tmp/copy"
		ssh-keygen -q -p -P '' -N '' -m $format -f "$tmp/copy" >&2
		mv "$tmp/copy" "$1-$(echo $format | tr PEMKCS pemkcs)"
	done
}
for bits in 256 384 521; do
	ssh-keygen -q -t ecdsa -b $bits -N '' -C "someone at p$bits" -f "$tmp/p$bits"
	openssh p$bits
done
ssh-keygen -q -t rsa -b 2048 -N '' -C 'someone with rsa' -f "$tmp/rsa"
openssh rsa

# sealed NAME CIPHER [FILE]: a copy of NAME-openssh that ssh-keygen encrypted.
sealed() {
	cp "$1-openssh" "$tmp/copy"
	ssh-keygen -q -p -P '' -N "$pass" -a 1 -Z "$2" -f "$tmp/copy" >&2
	mv "$tmp/copy" "${3:-$1-openssh-$2}"
}
sealed p256 aes256-ctr
sealed p256 aes256-cbc
sealed rsa aes256-ctr
sealed p521 aes256-ctr
for cipher in aes128-ctr 3des-cbc aes256-gcm@openssh.com chacha20-poly1305@openssh.com; do
	sealed p256 $cipher "refused-openssh-${cipher%@*}"
done

for key in p256 p384 p521 rsa; do
	openssl pkcs8 -topk8 -nocrypt -in $key-pem -outform DER -out $key-pkcs8.der
	case $key in
	rsa) openssl rsa -traditional -in $key-pem -outform DER -out $key-pem.der ;;
	*) openssl ec -in $key-pem -outform DER -out $key-pem.der ;;
	esac
	openssl pkcs8 -topk8 -v2 aes-256-cbc -v2prf hmacWithSHA256 -iter 1 -passout "pass:$pass" -in $key-pem -out $key-pbes2
done
for prf in SHA1 SHA384 SHA512; do
	openssl pkcs8 -topk8 -v2 aes-128-cbc -v2prf hmacWith$prf -iter 2 -passout "pass:$pass" -in p256-pem -out p256-pbes2-$prf
done
openssl pkcs8 -topk8 -v2 aes-128-cbc -v2prf hmacWithSHA224 -iter 2 -passout "pass:$pass" -in p256-pem -out refused-pbes2-SHA224
for cipher in aes-192-cbc des3; do
	openssl pkcs8 -topk8 -v2 $cipher -iter 1 -passout "pass:$pass" -in p256-pem -out p256-pbes2-$cipher
done
openssl pkcs8 -topk8 -scrypt -scrypt_N 2 -scrypt_r 1 -scrypt_p 1 -passout "pass:$pass" -in p256-pem -out p256-scrypt
openssl pkcs8 -topk8 -v2 aes-256-cbc -iter 1 -passout "pass:$pass" -in p256-pem -outform DER -out p256-pbes2.der
for cipher in aes128 aes192 aes256 des3; do
	openssl ec -$cipher -passout "pass:$pass" -in p256-pem -out p256-dek-$cipher
done
openssl ec -provider legacy -provider default -des -passout "pass:$pass" -in p256-pem -out p256-dek-des
openssl rsa -traditional -aes256 -passout "pass:$pass" -in rsa-pem -out rsa-dek
openssl ec -conv_form compressed -in p256-pem -out p256-compressed
openssl ec -conv_form hybrid -in p256-pem -out p256-hybrid
openssl ec -no_public -in p256-pem -out p256-nopublic
{ openssl ecparam -name prime256v1; cat p256-pem; } >p256-parameters
{
	printf '\357\273\277Bag Attributes\r\n    friendlyName: a key\r\n'
	openssl req -x509 -new -subj /CN=nobody -key p256-pem | sed 's/$/\r/'
	sed 's/$/\r/; s/^/  /' p256-pkcs8
	printf 'and so on\r\n'
} >p256-around
{ printf '\377\376'; iconv -f UTF-8 -t UTF-16LE p256-openssh; } >refused-utf16

for type in ed25519 dsa; do
	ssh-keygen -q -t $type -N "$pass" -a 1 -f "$tmp/$type"
	mv "$tmp/$type" refused-$type
done
ssh-keygen -q -t dsa -N '' -m PEM -f "$tmp/dsa"
mv "$tmp/dsa" refused-dsa-pem
openssl dsa -in refused-dsa-pem -outform DER -out refused-dsa.der
openssl pkcs8 -topk8 -nocrypt -in refused-dsa-pem -out refused-dsa-pkcs8
for type in ed25519 ed448 x25519 x448; do
	openssl genpkey -algorithm $type -out refused-$type-pkcs8
done
openssl genpkey -algorithm RSA-PSS -pkeyopt rsa_keygen_bits:2048 -out refused-rsa-pss
for curve in secp256k1 brainpoolP256r1 secp224r1 prime192v1 sect283r1; do
	openssl ecparam -name $curve -genkey -noout -out refused-$curve
done
openssl ecparam -name prime256v1 -param_enc explicit -genkey -noout -out refused-explicit
openssl genrsa -primes 3 -traditional -out refused-primes 2048
openssl genrsa -traditional -out refused-rsa512 512
openssl pkcs8 -topk8 -v1 PBE-SHA1-3DES -passout "pass:$pass" -in p256-pem -out refused-pbe-sha1-3des
for pbe in PBE-MD5-DES PBE-SHA1-RC4-128 PBE-SHA1-RC2-40 PBE-SHA1-DES; do
	openssl pkcs8 -provider legacy -provider default -topk8 -v1 $pbe -passout "pass:$pass" -in p256-pem \
		-out "refused-$(echo $pbe | tr PBESHADRCM pbeshadrcm)"
done
openssl pkcs8 -topk8 -v2 camellia256 -iter 1 -passout "pass:$pass" -in p256-pem -out refused-camellia
openssl ec -camellia128 -passout "pass:$pass" -in p256-pem -out refused-dek-camellia
openssl req -x509 -new -subj /CN=nobody -key p256-pem -out "$tmp/cert"
openssl pkcs12 -export -inkey p256-pem -in "$tmp/cert" -passout "pass:$pass" -out refused-pkcs12
printf %s "$pass" >"$tmp/pass"
puttygen p256-openssh -O private --ppk-param version=2 -o refused-ppk2
puttygen p256-openssh -O private --new-passphrase "$tmp/pass" --ppk-param memory=64,passes=1 -o refused-ppk3
puttygen refused-ed25519 --old-passphrase "$tmp/pass" -O private -o refused-ppk-ed25519 --new-passphrase "$tmp/pass" --ppk-param memory=64,passes=1
puttygen rsa-openssh -O private-sshcom -o refused-sshcom --new-passphrase /dev/null
