package bpf

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go@v0.22.0 -cc clang-14 -strip llvm-strip-14 -target amd64,arm64 -type sandbox -type sandbox_row -type rules -type rule -type key4 -type key6 -type fixed4 -type fixed6 -type name_key -type name -type name_row -type counters -type bucket_id -type bucket -type event -type flow_key -type flow -type address -type mark -type action -type reason -type listener netd netd.c -- -O2 -g -Wall -Werror -I/usr/include/x86_64-linux-gnu
