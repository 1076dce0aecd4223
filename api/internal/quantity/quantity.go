// Package quantity reads and writes amounts of memory and CPU as the contract
// spells them: `512Mi`, `2Gi`, `500m`, `0.5`. It is pure and bounds what it reads.
package quantity

import (
	"fmt"
	"math/big"
	"regexp"
	"strconv"
)

var pattern = regexp.MustCompile(`^([0-9]{1,19}(?:\.[0-9]{1,9})?)([A-Za-z]{0,2})$`)

var memoryUnits = map[string]int64{
	"": 1, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
	"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
}

// Memory reads an amount of memory or storage in bytes, rounded up.
func Memory(s string) (int64, error) { return parse(s, memoryUnits) }

// CPU reads an amount of CPU in thousandths of a core, rounded up.
func CPU(s string) (int64, error) { return parse(s, map[string]int64{"": 1000, "m": 1}) }

func parse(s string, units map[string]int64) (int64, error) {
	m := pattern.FindStringSubmatch(s)
	if m == nil {
		return 0, fmt.Errorf("quantity %.40q: want a number and a unit, such as 512Mi", s)
	}
	unit, ok := units[m[2]]
	if !ok {
		return 0, fmt.Errorf("quantity %.40q: unknown unit %q", s, m[2])
	}
	r, ok := new(big.Rat).SetString(m[1])
	if !ok {
		return 0, fmt.Errorf("quantity %.40q: not a number", s)
	}
	r.Mul(r, new(big.Rat).SetInt64(unit))
	n, rest := new(big.Int).QuoRem(r.Num(), r.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		n.Add(n, big.NewInt(1))
	}
	if !n.IsInt64() {
		return 0, fmt.Errorf("quantity %.40q: too large", s)
	}
	return n.Int64(), nil
}

// FormatMemory writes bytes with the largest binary unit that needs no fraction.
func FormatMemory(bytes int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"Ti", 1 << 40}, {"Gi", 1 << 30}, {"Mi", 1 << 20}, {"Ki", 1 << 10}} {
		if bytes >= u.size && bytes%u.size == 0 {
			return strconv.FormatInt(bytes/u.size, 10) + u.name
		}
	}
	return strconv.FormatInt(bytes, 10)
}

// FormatCPU writes thousandths of a core.
func FormatCPU(millis int64) string {
	if millis%1000 == 0 {
		return strconv.FormatInt(millis/1000, 10)
	}
	return strconv.FormatInt(millis, 10) + "m"
}
