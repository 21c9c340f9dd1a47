# Prints the path of a Python 3.10; fails where there is none. Set PYTHON310 to name one.
#
# pyenv's python3.10 answers only while that version is selected, but the versions stand beside it;
# uv knows where its own are.
shim=$(command -v python3.10)
for python in "$PYTHON310" python3.10 "${shim%/*}"/../versions/3.10.*/bin/python \
	"$(pyenv root 2>/dev/null)"/versions/3.10.*/bin/python \
	"$(uv python find --no-python-downloads 3.10 2>/dev/null)"; do
	"$python" -c 'import os, sys, ensurepip
sys.version_info[:2] == (3, 10) or sys.exit(1); print(os.path.abspath(sys.executable))' \
		2>/dev/null && exit
done
exit 1
