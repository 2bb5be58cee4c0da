package logind

import (
	"fmt"
	"strings"

	"github.com/godbus/dbus/v5"
)

// systemBus is the standard address of the system bus, from the D-Bus
// specification.
const systemBus = "unix:path=/run/dbus/system_bus_socket"

// socketPath returns the first unix socket in a list of server addresses (D-Bus
// specification, "Server Addresses"), in Go's notation for abstract ones.
func socketPath(list string) (string, error) {
	if list == "" {
		list = systemBus
	}
	for entry := range strings.SplitSeq(list, ";") {
		pairs, _ := strings.CutPrefix(entry, "unix:")
		for pair := range strings.SplitSeq(pairs, ",") {
			key, value, _ := strings.Cut(pair, "=")
			prefix, known := map[string]string{"path": "", "abstract": "@"}[key]
			if !known || pairs == entry {
				continue
			}
			value, err := dbus.UnescapeBusAddressValue(value)
			if err != nil || value == "" {
				return "", fmt.Errorf("bus address %q: %s= is empty or badly escaped", entry, key)
			}
			return prefix + value, nil
		}
	}
	return "", fmt.Errorf("bus address %q: no unix socket in it", list)
}
