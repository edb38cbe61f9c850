#!/bin/bash
# List the files of a folder: SHA-256, bytes, day of the last change, path; then those with the same
# content. Changes nothing.
set -eu
folder=${1:?a folder}
list=$(mktemp)
trap 'rm -f "$list"' EXIT
find "$folder" -type f ! -path '*/.*' -print0 |
  while IFS= read -r -d '' path; do
    sum=$(sha256sum < "$path" | cut -d ' ' -f 1)
    printf '%s\t%s\t%s\t%s\n' "$sum" "$(stat -c %s "$path")" "$(stat -c %.10y "$path")" "$path"
  done 2>/dev/null > "$list" || true
sort -t "$(printf '\t')" -k 4 "$list"
echo "files: $(wc -l < "$list")"
echo "the same content:"
cut -f 1 "$list" | sort | uniq -d | while read -r sum; do
  grep "^$sum" "$list" | cut -f 4
  echo
done
