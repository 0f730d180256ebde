# Takes out of a text what must not travel in a support bundle. Rather too much than too little.
# Key material in PEM form.
/-----BEGIN [A-Z0-9 ]*-----/,/-----END [A-Z0-9 ]*-----/{
/-----BEGIN/!d
s/-----BEGIN.*/REDACTED-PEM/
}
# A store's URL, however it is misspelt: nobody can say which part of it is the password, so all before the last @ of the
# line goes, and where there is none, all behind a colon that no port stands behind.
s#(rediss?|tiers):?/*.*@#\1://REDACTED@#I
/redis|tiers/I!s#(store["']?[[:space:]]*[=:][[:space:]]*["']?)[^[:space:]].*@#\1REDACTED@#I
/redis|tiers/I!s#(--store[=[:space:]]+)[^[:space:]].*@#\1REDACTED@#
s#(rediss?:?//?)[^@[:space:]]*:[0-9]*[^]0-9,/?@[:space:]:][^@[:space:]]*#\1REDACTED#Ig
# Who a URL logs in as: all before the last @ of the word, so that an @ or / inside a password hides nothing.
s#([A-Za-z][A-Za-z0-9+.-]*:)//[^[:space:]"']*@#\1//REDACTED@#g
# name=value, name: value, "name":"value", --name value, in URLs, configs, command lines and environments.
# A token is a secret; `tokens` are the numbers of a prompt here, and their counts are wanted.
s#((passw(or)?d|passphrase|pwd|secret|credential|api[-_]?key|access[-_]?key([-_]?id)?|private[-_]?key|auth|signature|salt|blob|export[-_]desc)[A-Za-z0-9_-]*["']?[[:space:]]*[=:][[:space:]]*["']?)(bearer |basic )?[^][:space:]"'&,;}]+#\1REDACTED#Ig
s#(token([_-][a-z0-9_-]*)?["']?[[:space:]]*[=:][[:space:]]*["']?)[^][:space:]"'&,;}]+#\1REDACTED#Ig
s#(--(password|pass|secret|token|salt|key|auth)[[:space:]]+)[^[:space:]]+#\1REDACTED#Ig
s#((authorization|bearer|basic)[=:]?[[:space:]]+)[^[:space:]"']{6,}.*#\1REDACTED#Ig
# Export blobs, chunk keys, tokens: long runs of hex or base64, and blobs printed as bytes.
s#(0x)?[0-9A-Fa-f]{32,}#REDACTED-HEX#g
s#([0-9A-Fa-f]{2}[ :,]){15,}[0-9A-Fa-f]{2}#REDACTED-BYTES#g
s#(0x[0-9A-Fa-f]{1,2}, ?){7,}0x[0-9A-Fa-f]{1,2}#REDACTED-BYTES#g
s#([0-9]{1,3}, ){15,}[0-9]{1,3}#REDACTED-BYTES#g
s#[A-Za-z0-9+/_-]{40,}={0,2}#REDACTED-BASE64#g
