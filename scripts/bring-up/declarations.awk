# What C headers declare, one line each: kind, name, header, text, tab-separated. For check-headers.sh.
# Input: `gcc -E -dD`. Variable `under`: the directory whose headers count, with a slash at its end.
#
#   function NAME HEADER PROTOTYPE       a symbol of a library
#   inline   NAME HEADER PROTOTYPE       a function whose body is in the header
#   typedef  NAME HEADER DECLARATION     without the body of a struct or enum
#   constant NAME HEADER ENUM-TAG        one value of an enum
#   struct   NAME HEADER struct|union    NAME with its keyword, where the header has the body
#   field    STRUCT.FIELD HEADER DECLARATION
#   number   NAME HEADER TEXT            a macro that looks like a number
#   macro    NAME HEADER PARAMETERS      a macro with parameters; their number is what counts

function emit(kind, name, text) {
	gsub(/[ \t]+/, " ", text)
	gsub(/^ | $/, "", text)
	if (name != "") print kind "\t" name "\t" header "\t" text
}

# Takes __attribute__((...)) and other marks out of a declaration.
function plain(text,    at, depth, i, c) {
	while (match(text, /__attribute__[ \t]*\(/)) {
		at = RSTART
		depth = 0
		for (i = at + RLENGTH - 1; i <= length(text); i++) {
			c = substr(text, i, 1)
			if (c == "(") depth++
			if (c == ")" && --depth == 0) break
		}
		text = substr(text, 1, at - 1) " " substr(text, i + 1)
	}
	# Two in a row share the space between them.
	while (sub(/(^|[ \t])(extern|static|inline|__inline|__inline__|__extension__)[ \t]+/, " ", text)) {}
	gsub(/[ \t]+/, " ", text)
	sub(/^ /, "", text)
	sub(/ $/, "", text)
	return text
}

function last_word(text) {
	sub(/[ \t]+$/, "", text)
	return match(text, /[A-Za-z_][A-Za-z0-9_]*$/) ? substr(text, RSTART) : ""
}

# The name in a typedef or a field: of a function type, a pointer to one, an array or a plain type.
function declared(text) {
	if (match(text, /\([ \t]*\*?[ \t]*[A-Za-z_][A-Za-z0-9_]*[ \t]*\)/)) {
		text = substr(text, RSTART, RLENGTH - 1)
		return last_word(text)
	}
	sub(/[ \t]*(\(|\[).*$/, "", text)
	return last_word(text)
}

function prototype(kind, text) {
	text = plain(text)
	emit(kind, last_word(substr(text, 1, index(text, "(") - 1)), text)
}

function constants(tag, body,    list, n, i, name) {
	n = split(body, list, ",")
	for (i = 1; i <= n; i++) {
		name = list[i]
		sub(/^[ \t]+/, "", name)
		if (match(name, /^[A-Za-z_][A-Za-z0-9_]*/)) emit("constant", substr(name, 1, RLENGTH), tag)
	}
}

function fields(owner, body,    list, n, i, name) {
	if (index(body, "{")) return # its size is compared, its inner structs are not taken apart
	n = split(body, list, ";")
	for (i = 1; i <= n; i++) {
		name = declared(plain(list[i]))
		if (name != "") emit("field", owner "." name, plain(list[i]))
	}
}

# A declaration at the outermost level: `head { body } tail ;`, or `head ;` with an empty body.
function declaration(head, body, tail,    words, keyword, tag, is_typedef) {
	head = plain(head)
	is_typedef = sub(/^typedef /, "", head)
	split(head, words, " ")
	keyword = words[1]
	if (body != "" && keyword ~ /^(struct|union|enum)$/) {
		tag = words[2]
		if (tag == "") tag = plain(tail)
		if (keyword == "enum") constants(tag, body)
		else {
			emit("struct", (words[2] == "" ? tag : keyword " " tag), keyword)
			fields((words[2] == "" ? tag : keyword " " tag), body)
		}
		if (is_typedef && words[2] != "") emit("typedef", last_word(plain(tail)), "typedef " keyword " " tag " " plain(tail))
		return
	}
	if (is_typedef) emit("typedef", declared(head), "typedef " head)
	else if (head ~ /\(/) prototype("function", head)
}

function define(line,    name, rest, parameters) {
	sub(/^#define /, "", line)
	match(line, /^[A-Za-z_][A-Za-z0-9_]*/)
	name = substr(line, 1, RLENGTH)
	rest = substr(line, RLENGTH + 1)
	# What differs by design, and what guards a header.
	if (name ~ /_H_$/ || name ~ /^DOCA_VER(SION)?_(MAJOR|MINOR|PATCH|STRING|EXACT|OFFICIAL)$/) return
	if (name !~ /^(DOCA|doca)_/) return
	if (substr(rest, 1, 1) == "(") {
		parameters = substr(rest, 2, index(rest, ")") - 2)
		gsub(/[ \t]/, "", parameters)
		emit("macro", name, "(" parameters ")")
	} else if (rest ~ /^[ \t]+[-(]*[ \t]*[0-9]/) emit("number", name, rest)
}

/^# [0-9]+ "/ {
	split($0, part, "\"")
	ours = index(part[2], under) == 1
	if (ours) {
		header = part[2]
		sub(/^.*\//, "", header)
	}
	next
}
!ours { next }
/^#define / { define($0); next }
/^#/ { next }
{
	line = $0 " "
	n = length(line)
	for (i = 1; i <= n; i++) {
		c = substr(line, i, 1)
		if (c == "{" && depth++ == 0) continue
		if (c == "}" && --depth == 0) {
			# A body that follows a parameter list is a function's; it needs no semicolon.
			if (head ~ /\)[ \t]*$/) {
				prototype("inline", head)
				head = body = tail = ""
			} else closed = 1
			continue
		}
		if (depth > 0) body = body c
		else if (c == ";") {
			declaration(head, body, tail)
			head = body = tail = ""
			closed = 0
		} else if (closed) tail = tail c
		else head = head c
	}
}
