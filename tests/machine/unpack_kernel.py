#!/usr/bin/python3
"""usage: unpack_kernel.py BZIMAGE OUT [COMMAND...]

Writes the ELF kernel of a bzImage. The boot protocol's header has its position (Documentation/arch/x86/boot.rst:
setup_sects at 0x1f1, payload_offset and payload_length at 0x248, protocol 2.08 and later).
COMMAND is a prefix of the unpacking tool, such as `chroot DIR`.
"""

import subprocess
import sys

TOOLS = {b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x02\x21\x4c\x18": "lz4", b"\x1f\x8b": "gzip"}

source, target, *prefix = sys.argv[1:]
image = open(source, "rb").read()
if image[0x202:0x206] != b"HdrS":
    sys.exit(f"{source}: not a bzImage")
real_mode = ((image[0x1F1] or 4) + 1) * 512
offset, length = (int.from_bytes(image[at : at + 4], "little") for at in (0x248, 0x24C))
payload = image[real_mode + offset : real_mode + offset + length]
tool = next((tool for magic, tool in TOOLS.items() if payload.startswith(magic)), None)
if tool is None:
    sys.exit(f"{source}: unknown compression ({payload[:6].hex()})")
# Four bytes with the unpacked size follow the data. Some tools report them as damage, so the result
# is checked instead of the exit status.
kernel = subprocess.run([*prefix, tool, "-dc"], input=payload, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
if not kernel.stdout.startswith(b"\x7fELF"):
    sys.exit(f"{source}: no ELF kernel inside ({tool}: {kernel.stderr.decode(errors='replace').strip()})")
open(target, "wb").write(kernel.stdout)
